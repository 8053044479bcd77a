use std::path::Path;

use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

/// The text with `config_path` of the plugin set to `folder`; all else stays as it is, byte for byte.
///
/// # Errors
/// Why the text can't be changed so.
pub(super) fn set_config_path(text: &str, plugin: &str, folder: &Path) -> Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| e.message().to_owned())?;
    let plugins = enter(document.as_table_mut(), "plugins")?;
    let section = enter(plugins, plugin)?;
    let indent = sub_table_indent(section);
    if section.get("registry").is_none() {
        let mut table = Table::new();
        table.decor_mut().set_prefix(format!("\n{indent}"));
        section.insert("registry", Item::Table(table));
    }
    let registry = section.get_mut("registry").and_then(Item::as_table_like_mut).ok_or("registry is no table")?;
    let mut value = Value::from(folder.to_str().ok_or("the folder's name is no text")?);
    if let Some(item) = registry.get_mut("config_path") {
        let old = item.as_value().ok_or("config_path is a table")?;
        *value.decor_mut() = old.decor().clone();
        *item = Item::Value(value);
    } else {
        let inner = key_indent(registry).unwrap_or_else(|| format!("{indent}  "));
        registry.insert("config_path", Item::Value(value));
        if let Some(mut key) = registry.key_mut("config_path") {
            key.leaf_decor_mut().set_prefix(inner);
        }
    }
    let mut changed = document.to_string();
    // A last line without an end is given one where ours comes after it.
    if !changed.ends_with('\n') {
        changed.push('\n');
    }
    Ok(changed)
}

/// The table below a key, which is made where it isn't there; without a header of its own, then.
fn enter<'a>(table: &'a mut dyn TableLike, key: &str) -> Result<&'a mut dyn TableLike, String> {
    if table.get(key).is_none() {
        let mut new = Table::new();
        new.set_implicit(true);
        table.insert(key, Item::Table(new));
    }
    table.get_mut(key).and_then(Item::as_table_like_mut).ok_or_else(|| format!("{key} is no table"))
}

/// How far the headers of the other tables there are set in.
fn sub_table_indent(section: &dyn TableLike) -> String {
    let mut tables = section.iter().filter_map(|(_, item)| item.as_table()).filter(|table| !table.is_implicit());
    tables.find_map(|table| blank_end(table.decor().prefix()?.as_str()?)).unwrap_or_default()
}

/// How far the other keys of a table are set in.
fn key_indent(table: &dyn TableLike) -> Option<String> {
    let (name, _) = table.iter().next()?;
    blank_end(table.key(name)?.leaf_decor().prefix()?.as_str()?)
}

/// What stands before it on its own line, where that is blank.
fn blank_end(prefix: &str) -> Option<String> {
    let line = prefix.rsplit('\n').next()?;
    line.chars().all(|c| c == ' ' || c == '\t').then(|| line.to_owned())
}
