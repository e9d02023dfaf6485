//! Reads the fields of one YAML mapping, and notes every mistake instead of stopping at the first.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value as JsonValue};

use super::Mistake;
use super::yaml::{Key, Node, Value};
use crate::error::sentence;

/// What was noticed so far.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
    /// Variables that stand in the text still.
    pub(super) unset: Vec<Mistake>,
}

impl Notes {
    pub(super) fn mistake(&mut self, line: Option<u64>, message: impl Into<String>) {
        self.mistakes.push(Mistake { line, message: message.into() });
    }

    pub(super) fn warning(&mut self, line: Option<u64>, message: impl Into<String>) {
        self.warnings.push(Mistake { line, message: message.into() });
    }

    /// The same, each as one line, by the lines they are on.
    pub(super) fn in_order(mut self) -> Self {
        for notes in [&mut self.mistakes, &mut self.warnings, &mut self.unset] {
            for note in notes.iter_mut() {
                note.message = sentence(&note.message);
            }
            notes.sort();
            notes.dedup();
        }
        self
    }

    /// Every key that stands twice in one mapping, anywhere below `node`.
    pub(super) fn repeated_keys(&mut self, node: &Node) {
        match &node.value {
            Value::List(items) => items.iter().for_each(|item| self.repeated_keys(item)),
            Value::Map(entries) => {
                self.repeated(entries, |key| &key.text);
                entries.iter().for_each(|(_, value)| self.repeated_keys(value));
            }
            _ => {}
        }
    }

    /// Every key that `name` calls the same as an earlier one.
    fn repeated(&mut self, entries: &[(Key, Node)], name: fn(&Key) -> &str) {
        let mut first = BTreeMap::new();
        for (key, _) in entries {
            if let Some(earlier) = first.insert(name(key), key.line) {
                let also = earlier.map(|line| format!(" (also on line {line})")).unwrap_or_default();
                let text = format!("key {:?} stands here twice{also}; keep one", name(key));
                self.mistake(key.line, text);
            }
        }
    }

    /// The same among keys of the format, where a symbol means what its text means.
    pub(super) fn repeated_names(&mut self, entries: &[(Key, Node)]) {
        self.repeated(entries, plain);
    }
}

/// A value and its line. Written as the value alone.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(super) struct At<T> {
    pub(super) value: T,
    #[serde(skip)]
    pub(super) line: Option<u64>,
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T> From<T> for At<T> {
    fn from(value: T) -> Self {
        Self { value, line: None }
    }
}

/// What a key is good for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Use {
    Used,
    /// It only describes, and is taken without a word.
    Describes,
    /// It is taken with a warning that says why it has no effect.
    Unused(&'static str),
    /// It does not belong here, and this is why.
    Refused(&'static str),
}

/// Keys that are good for the same. What kind of mapping may have which keys is a list of such groups.
pub(super) type Keys = (&'static [&'static str], Use);

/// A mapping's fields, under their plain names. A field that is null is absent.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    place: String,
    pub(super) line: Option<u64>,
    entries: Vec<(&'a str, &'a Key, &'a Node)>,
}

/// A key without the colon of a Ruby symbol.
pub(super) fn plain(key: &Key) -> &str {
    key.text.strip_prefix(':').unwrap_or(&key.text)
}

impl<'a> Fields<'a> {
    /// The fields of `node`, with its unknown keys noted. `place` says whose fields they are, empty for the
    /// template's own.
    pub(super) fn read(
        node: &'a Node,
        place: impl Into<String>,
        keys: &[&[Keys]],
        notes: &mut Notes,
    ) -> Option<Self> {
        let mut fields = Self { place: place.into(), line: node.line, entries: Vec::new() };
        let Value::Map(entries) = &node.value else {
            let message = match fields.place.as_str() {
                "" => {
                    format!("the file holds {}; expected a mapping with name, version, steps", node.shown())
                }
                place => format!("{place} is {}; expected a mapping", node.shown()),
            };
            notes.mistake(node.line, message);
            return None;
        };
        notes.repeated_names(entries);
        for (key, value) in entries {
            let name = plain(key);
            let found = keys.iter().copied().flatten().find(|(names, _)| names.contains(&name));
            match found.map(|(_, good_for)| *good_for) {
                Some(Use::Refused(why)) => notes.mistake(key.line, fields.say(&format!("{name} {why}"))),
                None => {
                    let known = |described| {
                        let groups = keys.iter().copied().flatten();
                        let wanted = groups.filter(move |(_, good_for)| {
                            matches!(good_for, Use::Used) || described && !matches!(good_for, Use::Refused(_))
                        });
                        wanted.flat_map(|(names, _)| names.iter().copied())
                    };
                    let hint = match nearest(name, known(true)) {
                        Some(near) => format!("did you mean {near:?}?"),
                        None => format!("known here: {}", known(false).collect::<Vec<_>>().join(", ")),
                    };
                    notes.mistake(key.line, fields.say(&format!("unknown key {name:?}; {hint}")));
                }
                Some(_) if value.is_null() => {}
                Some(good_for) => {
                    if let Use::Unused(why) = good_for {
                        notes.warning(key.line, fields.say(&format!("{name} has no effect: {why}")));
                    }
                    fields.entries.push((name, key, value));
                }
            }
        }
        Some(fields)
    }

    /// A sentence about this mapping.
    pub(super) fn say(&self, text: &str) -> String {
        if self.place.is_empty() { text.to_owned() } else { format!("{}: {text}", self.place) }
    }

    /// The field of this name.
    pub(super) fn get(&self, name: &str) -> Option<(&'a Key, &'a Node)> {
        self.entries.iter().find(|(entry, ..)| *entry == name).map(|(_, key, node)| (*key, *node))
    }

    /// The one of these fields that is there; two that differ are a mistake.
    pub(super) fn one_of(&self, names: &[&str], notes: &mut Notes) -> Option<(&'a Key, &'a Node)> {
        let mut present = names.iter().filter_map(|name| self.get(name));
        let (key, node) = present.next()?;
        for (other, value) in present {
            if value.to_json() != node.to_json() {
                let text = format!("{} and {} say the same thing; keep one", plain(key), plain(other));
                notes.mistake(other.line, self.say(&text));
            }
        }
        Some((key, node))
    }

    fn wrong(&self, key: &Key, node: &Node, expected: &str, notes: &mut Notes) {
        notes.mistake(
            node.line,
            self.say(&format!("{} is {}; expected {expected}", plain(key), node.shown())),
        );
    }

    pub(super) fn text(&self, names: &[&str], notes: &mut Notes) -> Option<At<String>> {
        let (key, node) = self.one_of(names, notes)?;
        match &node.value {
            Value::Text(text) => Some(At { value: text.clone(), line: node.line }),
            _ => {
                self.wrong(key, node, "text; put it in quotes", notes);
                None
            }
        }
    }

    pub(super) fn flag(&self, names: &[&str], notes: &mut Notes) -> Option<bool> {
        let (key, node) = self.one_of(names, notes)?;
        let flag = match &node.value {
            Value::Bool(flag) => Some(*flag),
            // YAML 1.1, which older files were written for.
            Value::Text(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Some(true),
                "false" | "no" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        };
        if flag.is_none() {
            self.wrong(key, node, "true or false", notes);
        }
        flag
    }

    /// A whole number within `range`. Numbers in quotes are taken, and fractions are cut off.
    pub(super) fn whole(
        &self,
        names: &[&str],
        range: RangeInclusive<u32>,
        notes: &mut Notes,
    ) -> Option<At<u32>> {
        let (key, node) = self.one_of(names, notes)?;
        let number = number(node);
        let (least, most) = range.into_inner();
        match number.filter(|number| (f64::from(least)..=f64::from(most)).contains(&number.trunc())) {
            Some(number) => {
                if number.fract() != 0.0 {
                    let text = format!("{} is {number}; the fraction is cut off", plain(key));
                    notes.warning(node.line, self.say(&text));
                }
                Some(At { value: number as u32, line: node.line })
            }
            None => {
                let expected = match least {
                    0 => format!("a whole number, at most {most}"),
                    least => format!("a whole number from {least} to {most}"),
                };
                self.wrong(key, node, &expected, notes);
                None
            }
        }
    }

    /// A length of time given in seconds, within `range` of seconds; cut to whole milliseconds.
    pub(super) fn seconds(
        &self,
        names: &[&str],
        range: RangeInclusive<f64>,
        notes: &mut Notes,
    ) -> Option<At<f64>> {
        let (key, node) = self.one_of(names, notes)?;
        let seconds = number(node).filter(|seconds| range.contains(seconds));
        if seconds.is_none() {
            let expected = format!("seconds, from {} to {}", range.start(), range.end());
            self.wrong(key, node, &expected, notes);
        }
        seconds.map(|value| At { value: (value * 1_000.0).round() / 1_000.0, line: node.line })
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        names: &[&str],
        what: &str,
        choices: &[(&str, T)],
        notes: &mut Notes,
    ) -> Option<At<T>> {
        let word = self.text(names, notes)?;
        // A value may be a symbol, too.
        let name = word.value.trim_start_matches(':');
        let found = choices.iter().find(|(known, _)| *known == name).map(|(_, choice)| *choice);
        if found.is_none() {
            let hint = did_you_mean(name, choices.iter().map(|(known, _)| *known));
            notes.mistake(word.line, self.say(&format!("{what} {name:?} is unknown; {hint}")));
        }
        found.map(|value| At { value, line: word.line })
    }

    /// A value as it stands.
    pub(super) fn json(&self, name: &str) -> Option<JsonValue> {
        self.get(name).map(|(_, node)| node.to_json())
    }

    /// A name, or a list of names.
    pub(super) fn names(&self, name: &str, notes: &mut Notes) -> Vec<At<String>> {
        let Some((key, node)) = self.get(name) else { return Vec::new() };
        let items = match &node.value {
            Value::List(items) => items.iter().collect(),
            _ => vec![node],
        };
        let mut texts = Vec::new();
        for item in items {
            match &item.value {
                Value::Text(text) => texts.push(At { value: text.clone(), line: item.line }),
                _ => self.wrong(key, item, "names of steps, as text", notes),
            }
        }
        texts
    }

    /// A list's items.
    pub(super) fn items(&self, name: &str, notes: &mut Notes) -> &'a [Node] {
        let Some((key, node)) = self.get(name) else { return &[] };
        match &node.value {
            Value::List(items) => items,
            _ => {
                self.wrong(key, node, "a list", notes);
                &[]
            }
        }
    }

    /// A mapping's entries, keys as they are written.
    pub(super) fn entries(&self, name: &str, notes: &mut Notes) -> &'a [(Key, Node)] {
        let Some((key, node)) = self.get(name) else { return &[] };
        match &node.value {
            Value::Map(entries) => {
                notes.repeated_names(entries);
                entries
            }
            _ => {
                self.wrong(key, node, "a mapping", notes);
                &[]
            }
        }
    }

    /// A free-form mapping, keys as they are written.
    pub(super) fn object(&self, names: &[&str], notes: &mut Notes) -> Option<Map<String, JsonValue>> {
        let (key, node) = self.one_of(names, notes)?;
        match node.to_json() {
            JsonValue::Object(object) => Some(object),
            _ => {
                self.wrong(key, node, "a mapping", notes);
                None
            }
        }
    }
}

fn number(node: &Node) -> Option<f64> {
    match &node.value {
        Value::Number(number) => number.as_f64(),
        Value::Text(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
        _ => None,
    }
}

/// The candidate that `word` may have been meant for.
fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    // Enough for a swapped, missing or added letter and for a missing end, not for another word.
    const NEAR: f64 = 0.82;
    candidates
        .map(|candidate| (strsim::jaro_winkler(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(nearness, _)| *nearness >= NEAR)
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, candidate)| candidate)
}

/// The end of a sentence about a name that is none of `names`: the nearest one, or what there is.
pub(super) fn did_you_mean<'c>(word: &str, names: impl Iterator<Item = &'c str> + Clone) -> String {
    const LISTED: usize = 20;
    if let Some(near) = nearest(word, names.clone()) {
        return format!("did you mean {near:?}?");
    }
    let listed: Vec<&str> = names.clone().take(LISTED).collect();
    match (listed.len(), names.count() > LISTED) {
        (0, _) => "there are no others".to_owned(),
        (_, more) => format!("there are: {}{}", listed.join(", "), if more { ", …" } else { "" }),
    }
}
