use std::io::{self, Write};

use serde::Serialize;

use super::finding::{Finding, Outcome, Severity};

/// What continues a finding is set in below its text.
const INDENT: &str = "          ";

/// For people. Colours are for terminals alone.
pub(super) fn text(findings: &[Finding], colours: bool, out: &mut impl Write) -> io::Result<()> {
    for finding in findings {
        let (word, colour) = match finding.severity {
            Severity::Ok => ("ok", "32"),
            Severity::Note => ("note", "33"),
            Severity::Unknown => ("unknown", "35"),
            Severity::Problem => ("problem", "31"),
        };
        let padding = &INDENT[word.len()..];
        if colours {
            write!(out, "\x1b[{colour}m{word}\x1b[0m{padding}")?;
        } else {
            write!(out, "{word}{padding}")?;
        }
        writeln!(out, "{}", lines(&finding.what))?;
        if let Some(place) = &finding.place {
            writeln!(out, "{INDENT}at {place}")?;
        }
        if let Some(why) = &finding.why {
            writeln!(out, "{INDENT}{}", lines(why))?;
        }
        for (at, mend) in finding.mend.iter().enumerate() {
            let (lead, end) =
                (if at == 0 { "to mend it:" } else { "or:" }, if mend.lines.is_empty() { "" } else { ":" });
            writeln!(out, "{INDENT}{lead} {}{end}", mend.how)?;
            for line in &mend.lines {
                writeln!(out, "{INDENT}    {line}")?;
            }
            if let Some(command) = &mend.then {
                writeln!(out, "{INDENT}then run:\n{INDENT}    {command}")?;
            }
        }
    }
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    match Outcome::of(findings) {
        Outcome::Fine => writeln!(out, "\nNo problems found."),
        Outcome::Problems => writeln!(out, "\nProblems: {}.", count(Severity::Problem)),
        Outcome::Unchecked => {
            writeln!(out, "\nNo problems found, but not everything could be checked: {}.", count(Severity::Unknown))
        }
    }
}

/// For scripts: one object.
pub(super) fn json(findings: &[Finding], out: &mut impl Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct Report<'a> {
        outcome: Outcome,
        findings: &'a [Finding],
    }
    serde_json::to_writer_pretty(&mut *out, &Report { outcome: Outcome::of(findings), findings })?;
    writeln!(out)
}

/// Messages of others may have several lines, and what else a terminal would obey.
fn lines(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    clean.trim_end().replace('\n', &format!("\n{INDENT}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Mend;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::new("port", Severity::Ok, "the agent listens on 127.0.0.1:7439"),
            Finding::new("config", Severity::Problem, "config_path isn't set\n\x1b[2J")
                .at("/etc/containerd/config.toml:3")
                .because("no hosts.toml is read")
                .mended_by([Mend::new("write into the file", ["[a]", "  b = 1"]).then("y"), Mend::run("x")]),
        ]
    }

    #[test]
    fn for_people() {
        let mut out = Vec::new();
        text(&findings(), false, &mut out).unwrap();
        let expected = "\
ok        the agent listens on 127.0.0.1:7439
problem   config_path isn't set
           [2J
          at /etc/containerd/config.toml:3
          no hosts.toml is read
          to mend it: write into the file:
              [a]
                b = 1
          then run:
              y
          or: run:
              x

Problems: 1.
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut coloured = Vec::new();
        text(&findings()[..1], true, &mut coloured).unwrap();
        assert!(coloured.starts_with(b"\x1b[32mok\x1b[0m        the"));
    }

    #[test]
    fn for_scripts() {
        let mut out = Vec::new();
        json(&findings(), &mut out).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["outcome"], "problems");
        assert_eq!(value["findings"][1]["severity"], "problem");
        assert_eq!(value["findings"][1]["mend"][0]["lines"][1], "  b = 1");
        assert!(value["findings"][0].get("mend").is_none());
    }

    #[test]
    fn the_worst_decides() {
        let of = |severities: &[Severity]| {
            Outcome::of(&severities.iter().map(|s| Finding::new("x", *s, "")).collect::<Vec<_>>())
        };
        assert_eq!(of(&[]), Outcome::Fine);
        assert_eq!(of(&[Severity::Ok, Severity::Note]), Outcome::Fine);
        assert_eq!(of(&[Severity::Unknown, Severity::Note]), Outcome::Unchecked);
        assert_eq!(of(&[Severity::Unknown, Severity::Problem]), Outcome::Problems);
    }
}
