use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use toml_edit::{Document, Item, TableLike, Value};

use super::Place;

/// A value of the configuration that knows where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Table(BTreeMap<String, Node>),
    List(Vec<Node>),
    Text(String),
    Integer(i64),
    Bool(bool),
    /// Floats and dates, which no key here wants.
    Other,
}

impl Node {
    pub(super) fn empty(file: &Arc<Path>) -> Self {
        Self { place: Place { file: Arc::clone(file), line: 1 }, kind: Kind::Table(BTreeMap::new()) }
    }

    /// What stands at this path of keys.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.table()?.get(*key))
    }

    pub(super) fn table(&self) -> Option<&BTreeMap<String, Self>> {
        if let Kind::Table(table) = &self.kind { Some(table) } else { None }
    }

    pub(super) fn table_mut(&mut self) -> Option<&mut BTreeMap<String, Self>> {
        if let Kind::Table(table) = &mut self.kind { Some(table) } else { None }
    }

    pub(super) fn text(&self) -> Option<&str> {
        if let Kind::Text(text) = &self.kind { Some(text) } else { None }
    }

    pub(super) const fn integer(&self) -> Option<i64> {
        if let Kind::Integer(number) = self.kind { Some(number) } else { None }
    }

    pub(super) const fn is(&self, expected: bool) -> bool {
        matches!(self.kind, Kind::Bool(value) if value == expected)
    }

    /// A table or list with something in it.
    pub(super) fn is_filled(&self) -> bool {
        match &self.kind {
            Kind::Table(table) => !table.is_empty(),
            Kind::List(list) => !list.is_empty(),
            _ => false,
        }
    }

    /// The texts of a list; nothing for anything else.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        let list = if let Kind::List(list) = &self.kind { list.as_slice() } else { &[] };
        list.iter().filter_map(Self::text)
    }
}

/// The tree of one file; or the line at which it stops being TOML, and why.
pub(super) fn parse(text: &str, file: &Arc<Path>) -> Result<Node, (usize, String)> {
    let lines = Lines { starts: std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect() };
    let document = Document::parse(text)
        .map_err(|error| (lines.of(error.span().map_or(0, |span| span.start)), error.message().to_owned()))?;
    Ok(Reader { file, lines: &lines }.table(document.as_table(), 1))
}

struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    fn of(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }
}

struct Reader<'a> {
    file: &'a Arc<Path>,
    lines: &'a Lines,
}

impl Reader<'_> {
    fn table(&self, table: &dyn TableLike, line: usize) -> Node {
        let read = |(key, item): (&str, &Item)| {
            let line = self.line(item.span()).or_else(|| first_line(self, item)).unwrap_or(line);
            (key.to_owned(), self.item(item, line))
        };
        self.node(line, Kind::Table(table.iter().map(read).collect()))
    }

    fn item(&self, item: &Item, line: usize) -> Node {
        match item {
            Item::Value(value) => self.value(value, line),
            Item::Table(table) => self.table(table, line),
            Item::ArrayOfTables(tables) => {
                let list = tables.iter().map(|t| self.table(t, self.line(t.span()).unwrap_or(line))).collect();
                self.node(line, Kind::List(list))
            }
            Item::None => self.node(line, Kind::Other),
        }
    }

    fn value(&self, value: &Value, line: usize) -> Node {
        let kind = match value {
            Value::String(text) => Kind::Text(text.value().clone()),
            Value::Integer(number) => Kind::Integer(*number.value()),
            Value::Boolean(value) => Kind::Bool(*value.value()),
            Value::Array(list) => {
                Kind::List(list.iter().map(|v| self.value(v, self.line(v.span()).unwrap_or(line))).collect())
            }
            Value::InlineTable(table) => return self.table(table, line),
            Value::Float(_) | Value::Datetime(_) => Kind::Other,
        };
        self.node(line, kind)
    }

    fn line(&self, span: Option<std::ops::Range<usize>>) -> Option<usize> {
        span.map(|span| self.lines.of(span.start))
    }

    fn node(&self, line: usize, kind: Kind) -> Node {
        Node { place: Place { file: Arc::clone(self.file), line }, kind }
    }
}

/// For a table that is only implied by those within it: where the first of them stands.
fn first_line(reader: &Reader<'_>, item: &Item) -> Option<usize> {
    let table = item.as_table_like()?;
    let (_, first) = table.iter().next()?;
    reader.line(first.span()).or_else(|| first_line(reader, first))
}
