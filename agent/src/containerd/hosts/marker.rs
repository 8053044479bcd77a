//! Which lines of a file are ours.
//!
//! They stand between `# >>> larder` and `# <<< larder`; without them a file is what the user wrote. The first of them
//! carries what restoring needs, and two checksums: one of everything, one of the user's part alone. So an edit is
//! seen, and an edit of the user's part is told from one of ours.

use sha2::{Digest as _, Sha256};

const OPEN: &str = "# >>> larder";
const CLOSE: &str = "# <<< larder";
const HEAD: &str = "# >>> larder v1 ";
const SUM: &str = " sum=";

/// What the first line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Our URL in this file.
    pub(super) mirror: String,
    /// Whether there was a file before ours; it lies beside it.
    pub(super) kept: bool,
    /// Whether we made the folder.
    pub(super) made: bool,
}

/// A file that has our first line.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) facts: Facts,
    /// The whole, as it stands there.
    pub(super) text: String,
    /// The user's part.
    pub(super) rest: String,
    /// Whether the user's part is what it was when we wrote the file.
    pub(super) rest_is_ours: bool,
    /// Whether every byte is.
    pub(super) intact: bool,
}

/// `lines` as a block of ours. They end with a line's end.
pub(super) fn block(lines: &str) -> String {
    format!("{OPEN}\n{lines}{CLOSE}\n")
}

/// `body` (the user's lines and our blocks) with the first lines before it. `notes` are comments without their `#`.
pub(super) fn write(facts: &Facts, notes: &[String], body: &str) -> String {
    let yes = |flag, yes, no| if flag { yes } else { no };
    let head = format!(
        "{HEAD}original={} folder={} mirror={} rest={}",
        yes(facts.kept, "kept", "none"),
        yes(facts.made, "made", "found"),
        facts.mirror,
        checksum(&[&strip(body)]),
    );
    let notes: String = notes.iter().map(|note| format!("# {note}\n")).collect();
    let tail = format!("{notes}{CLOSE}\n{body}");
    format!("{head}{SUM}{}\n{tail}", checksum(&["", &head, &tail]))
}

/// Reads a file; `None` if we didn't write it.
pub(super) fn read(bytes: &[u8]) -> Option<Written> {
    let text = str::from_utf8(bytes).ok()?;
    let start = if text.starts_with(HEAD) { 0 } else { text.find(&format!("\n{HEAD}"))? + 1 };
    let (line, tail) = text[start..].split_once('\n').unwrap_or((&text[start..], ""));
    let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).unwrap_or("");
    let facts = Facts {
        mirror: field("mirror").to_owned(),
        kept: field("original") == "kept",
        made: field("folder") == "made",
    };
    let rest = strip(text);
    let head = line.split_once(SUM).map_or(line, |(head, _)| head);
    Some(Written {
        intact: field("sum") == checksum(&[&text[..start], head, tail]),
        rest_is_ours: field("rest") == checksum(&[&rest]),
        rest,
        facts,
        text: text.to_owned(),
    })
}

/// The text without our lines.
pub(super) fn strip(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut lines = text.split_inclusive('\n');
    while let Some(line) = lines.next() {
        if !line.starts_with(OPEN) {
            out.push_str(line);
            continue;
        }
        let mut beyond = lines.clone();
        // A block that somebody left without its end is its first line only: nothing of theirs may go with it.
        if beyond.by_ref().take_while(|l| !l.starts_with(OPEN)).any(|l| l.starts_with(CLOSE)) {
            lines = beyond;
        }
    }
    out
}

fn checksum(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    // 64 bits: against accidents, not against those who can write the file anyway.
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { mirror: "https://127.0.0.1:7439".into(), kept: true, made: false }
    }

    fn sample() -> String {
        let body = format!("server = \"s\"\n{}[host.a]\n", block("[host.us]\n"));
        write(&facts(), &["a note".into()], &body)
    }

    #[test]
    fn what_was_written_is_read() {
        let text = sample();
        let written = read(text.as_bytes()).unwrap();
        assert_eq!(written.facts, facts());
        assert_eq!(written.rest, "server = \"s\"\n[host.a]\n");
        assert!(written.intact && written.rest_is_ours);
    }

    #[test]
    fn edits_are_seen_and_told_apart() {
        let ours = sample().replace("[host.us]", "[host.us]\nx=1");
        let written = read(ours.as_bytes()).unwrap();
        assert!(!written.intact && written.rest_is_ours);

        for theirs in [sample() + "# more\n", format!("# top\n{}", sample()), sample().replace("\"s\"", "\"t\"")] {
            let written = read(theirs.as_bytes()).unwrap();
            assert!(!written.intact && !written.rest_is_ours, "{theirs}");
        }

        let head = sample().replace("folder=found", "folder=made");
        assert!(!read(head.as_bytes()).unwrap().intact);
    }

    #[test]
    fn a_block_without_its_end_takes_nothing_with_it() {
        let cut = sample().replacen("# <<< larder\nserver", "server", 1);
        assert_eq!(strip(&cut), "# a note\nserver = \"s\"\n[host.a]\n");
        assert_eq!(strip("# >>> larder\n[host.a]"), "[host.a]");
    }

    #[test]
    fn others_are_not_ours() {
        assert!(read(b"server = 'x'\n").is_none());
        assert!(read(b"").is_none());
        assert!(read(b"\xff# >>> larder v1 x").is_none());
    }
}
