use crate::cli::doctor::facts::Facts;
use crate::cli::doctor::finding::{Finding, Mend, Severity};

/// Whether the file for node-exporter can be written.
pub(super) fn textfile(facts: &Facts) -> Vec<Finding> {
    let (Some(path), Some(outcome)) = (&facts.config.admin.textfile, &facts.textfile) else { return Vec::new() };
    let Err(why) = outcome else { return Vec::new() };
    let folder = path.parent().unwrap_or(path).display();
    vec![
        Finding::new("textfile", Severity::Problem, format!("the textfile can't be written: {why}"))
            .at(&path.display())
            .because("node-exporter shows nothing of Larder")
            .mended_by([Mend::new(
                "make the folder, mount it in the Pod, and tell node-exporter of it",
                [format!("--collector.textfile.directory={folder}")],
            )]),
    ]
}
