//! What nodes say to each other, as it stands on the wire and as we think of it.
//!
//! What comes in is parsed once, and strictly: what is malformed is refused as a whole. Only where a newer version may
//! know more than we do (values of enumerations, parts of a `oneof`) what we don't know is taken for the nearest thing
//! that is safe.

mod checks;
mod content;
mod copies;
mod directory;
mod rights;
mod tags;
mod words;

pub use checks::{
    MOST_WATCHED, book, book_of, grant_ask, grant_ask_of, granted, granted_of, hand_over_ask, standings, standings_of,
    watch, watch_of,
};
pub use content::{ReadAsk, beat, beat_of, head, head_of, parting, parting_of, read_ask, read_request};
pub use copies::{MOST_WANTED, want, want_of};
pub use directory::{
    MOST_HOLDINGS, announced, announced_of, answered, answered_of, ask, ask_of, report, report_of, shelves, shelves_of,
    suspect, verdict, verdict_of,
};
pub use rights::{
    knows, knows_of, right_kept, right_kept_of, right_request, right_request_of, right_told, right_told_of,
};
pub use tags::{tag_answer, tag_answer_of, tag_ask, tag_ask_of, tag_report, tag_report_of};
pub use words::Malformed;
