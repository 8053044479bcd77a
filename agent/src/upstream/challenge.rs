use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// What is read of an answer's challenges: far more than any registry sends.
const MAX_BYTES: usize = 8 << 10;
const MAX_CHALLENGES: usize = 16;
const MAX_PARAMETERS: usize = 16;

/// One way to authenticate that an answer offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case: `bearer`, `basic`.
    pub(super) scheme: String,
    /// Names in lower case, in their order.
    pub(super) parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The challenges of an answer. What is malformed ends the reading of its header, and takes nothing back.
    pub(super) fn read(headers: &HeaderMap) -> Vec<Self> {
        let mut challenges = Vec::new();
        let mut left = MAX_BYTES;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let Some(rest) = left.checked_sub(value.len()) else { break };
            left = rest;
            if let Ok(text) = value.to_str() {
                parse(text, &mut challenges);
            }
        }
        challenges
    }

    /// A parameter's value.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// One header: challenges divided by commas, whose parameters are divided by commas too. A name followed by `=`
/// belongs to the challenge before it, and one that isn't starts the next.
fn parse(text: &str, challenges: &mut Vec<Challenge>) {
    let mut rest = Cursor(text);
    let mut current: Option<Challenge> = None;
    loop {
        rest.skip(|c| c == ' ' || c == '\t' || c == ',');
        let name = rest.take(is_token);
        if name.is_empty() {
            break;
        }
        let before = rest;
        let spaces = rest.take(is_blank);
        if rest.eat('=') {
            let Some(challenge) = &mut current else { break };
            rest.skip(is_blank);
            let Some(value) = rest.value() else { break };
            let name = name.to_ascii_lowercase();
            if challenge.parameters.len() < MAX_PARAMETERS && challenge.parameter(&name).is_none() {
                challenge.parameters.push((name, value));
            }
        } else {
            challenges.extend(current.take());
            if challenges.len() >= MAX_CHALLENGES {
                return;
            }
            current = Some(Challenge { scheme: name.to_ascii_lowercase(), parameters: Vec::new() });
            rest = before;
            if !spaces.is_empty() {
                rest.skip_token68();
            }
        }
    }
    challenges.extend(current);
}

#[derive(Clone, Copy)]
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn take(&mut self, belongs: fn(char) -> bool) -> &'a str {
        let end = self.0.find(|c| !belongs(c)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        self.0 = rest;
        taken
    }

    fn skip(&mut self, belongs: fn(char) -> bool) {
        let _ = self.take(belongs);
    }

    fn eat(&mut self, c: char) -> bool {
        let rest = self.0.strip_prefix(c);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// A token or a quoted string; `None` for a string without an end.
    fn value(&mut self) -> Option<String> {
        if !self.eat('"') {
            return Some(self.take(is_loose_value).to_owned());
        }
        let mut value = String::new();
        let mut chars = self.0.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.0 = &self.0[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(chars.next()?.1),
                _ => value.push(c),
            }
        }
        None
    }

    /// Credentials in the short form, as in `Negotiate YII=`: base64 that a comma or the end follows.
    fn skip_token68(&mut self) {
        let mut ahead = *self;
        ahead.skip(is_blank);
        let run = ahead.take(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~' | '+' | '/'));
        ahead.skip(|c| c == '=');
        ahead.skip(is_blank);
        if !run.is_empty() && (ahead.0.is_empty() || ahead.0.starts_with(',')) {
            *self = ahead;
        }
    }
}

const fn is_blank(c: char) -> bool {
    c == ' ' || c == '\t'
}

const fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c, '!' | '#' | '$' | '%' | '&' | '\'' | '*' | '+' | '-' | '.' | '^' | '_' | '`' | '|' | '~')
}

/// Some registries don't quote URLs.
const fn is_loose_value(c: char) -> bool {
    is_token(c) || matches!(c, ':' | '/' | '?' | '@' | '=')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<Challenge> {
        let mut challenges = Vec::new();
        parse(text, &mut challenges);
        challenges
    }

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let parameters = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Challenge { scheme: scheme.to_owned(), parameters }
    }

    #[test]
    fn as_registries_send_them() {
        let realm = ("realm", "https://auth.docker.io/token");
        let service = ("service", "registry.docker.io");
        let scope = ("scope", "repository:a/b:pull,push");
        for (text, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![challenge("bearer", &[realm, service, scope])],
            ),
            (r#"bearer  Realm = "https://auth.docker.io/token" , "#, vec![challenge("bearer", &[realm])]),
            ("Bearer realm=https://auth.docker.io/token", vec![challenge("bearer", &[realm])]),
            (
                r#"Negotiate YII==, Basic realm="a \"b\", c", Bearer realm="https://auth.docker.io/token""#,
                vec![
                    challenge("negotiate", &[]),
                    challenge("basic", &[("realm", "a \"b\", c")]),
                    challenge("bearer", &[realm]),
                ],
            ),
            ("Negotiate, Bearer x=1,x=2", vec![challenge("negotiate", &[]), challenge("bearer", &[("x", "1")])]),
            (r#"Bearer a="1", b="open"#, vec![challenge("bearer", &[("a", "1")])]),
            (r#"realm="lonely""#, vec![]),
            ("", vec![]),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn endless_headers_are_not_read() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=a".parse().unwrap());
        headers.append(WWW_AUTHENTICATE, format!("Bearer realm={}", "a".repeat(MAX_BYTES)).parse().unwrap());
        assert_eq!(Challenge::read(&headers), [challenge("basic", &[("realm", "a")])]);
        assert_eq!(read(&"A, ".repeat(1000)).len(), MAX_CHALLENGES);
    }

    fn quoted(value: &str) -> String {
        format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    }

    prop_compose! {
        fn any_challenge()(
            scheme in "[a-z]{1,8}",
            names in prop::collection::btree_set("[a-z_]{1,8}", 1..4),
            values in prop::collection::vec("[ -~]{0,12}", 4),
        ) -> Challenge {
            Challenge { scheme, parameters: names.into_iter().zip(values).collect() }
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,60}") {
            read(&text);
        }

        #[test]
        fn never_panics_on_what_looks_right(text in "(Bearer|,| |=|\"|\\\\|a|/){0,40}") {
            read(&text);
        }

        #[test]
        fn written_and_read_back(challenges in prop::collection::vec(any_challenge(), 1..4)) {
            let text = challenges.iter().map(|c| {
                let parameters: Vec<_> = c.parameters.iter().map(|(n, v)| format!("{n}={}", quoted(v))).collect();
                format!("{} {}", c.scheme, parameters.join(","))
            }).collect::<Vec<_>>().join(", ");
            prop_assert_eq!(read(&text), challenges);
        }
    }
}
