/// As whom an upstream is asked: what the caller, for whom it is, has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Grant {
    /// Whatever anybody gets: an anonymous token where the upstream wants one.
    #[default]
    Anonymous,
}
