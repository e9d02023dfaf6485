//! Reads the fields of one YAML mapping, and notes every mistake instead of stopping at the first.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value as JsonValue};

use super::Mistake;
use super::yaml::{Key, Node, Value};

/// What was noticed so far.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
}

impl Notes {
    pub(super) fn mistake(&mut self, line: Option<u64>, message: impl Into<String>) {
        self.mistakes.push(Mistake { line, message: message.into() });
    }

    pub(super) fn warning(&mut self, line: Option<u64>, message: impl Into<String>) {
        self.warnings.push(Mistake { line, message: message.into() });
    }

    /// Every key that stands twice in one mapping, anywhere below `node`.
    pub(super) fn repeated_keys(&mut self, node: &Node) {
        match &node.value {
            Value::List(items) => items.iter().for_each(|item| self.repeated_keys(item)),
            Value::Map(entries) => {
                let mut first = BTreeMap::new();
                for (key, value) in entries {
                    if let Some(earlier) = first.insert(plain(key), key.line) {
                        let also = earlier.map(|line| format!(" (also on line {line})")).unwrap_or_default();
                        self.mistake(
                            key.line,
                            format!("key {:?} stands here twice{also}; keep one", plain(key)),
                        );
                    }
                    self.repeated_keys(value);
                }
            }
            _ => {}
        }
    }
}

/// A value and its line.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) line: Option<u64>,
}

/// The keys one kind of mapping may have.
#[derive(Debug)]
pub(super) struct Keys {
    /// Those that mean something here.
    pub(super) used: &'static [&'static str],
    /// Those that only describe; taken without a word.
    pub(super) descriptive: &'static [&'static str],
    /// Those whose effect is missing here; taken with a warning.
    pub(super) unused: &'static [&'static str],
    /// Those that are easily put in the wrong place, and what to say about them.
    pub(super) refused: &'static [(&'static str, &'static str)],
}

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
        keys: &Keys,
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
        for (key, value) in entries {
            let name = plain(key);
            if keys.used.contains(&name) {
                if !value.is_null() {
                    fields.entries.push((name, key, value));
                }
            } else if keys.unused.contains(&name) {
                notes.warning(key.line, fields.say(&format!("{name} is known but has no effect here")));
            } else if let Some((_, why)) = keys.refused.iter().find(|(refused, _)| *refused == name) {
                notes.mistake(key.line, fields.say(&format!("{name} {why}")));
            } else if !keys.descriptive.contains(&name) {
                let known = [keys.used, keys.descriptive, keys.unused].into_iter().flatten().copied();
                let hint = match nearest(name, known) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("known here: {}", keys.used.join(", ")),
                };
                notes.mistake(key.line, fields.say(&format!("unknown key {name:?}; {hint}")));
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

    /// A whole number, `most` at most. Numbers in quotes are taken, and fractions are cut off.
    pub(super) fn whole(&self, names: &[&str], most: u64, notes: &mut Notes) -> Option<At<u64>> {
        let (key, node) = self.one_of(names, notes)?;
        let number = number(node);
        match number.filter(|number| (0.0..=most as f64).contains(&number.trunc())) {
            Some(number) => {
                if number.fract() != 0.0 {
                    let text = format!("{} is {number}; the fraction is cut off", plain(key));
                    notes.warning(node.line, self.say(&text));
                }
                Some(At { value: number as u64, line: node.line })
            }
            None => {
                let expected = format!("a whole number, at most {most}");
                self.wrong(key, node, &expected, notes);
                None
            }
        }
    }

    /// A length of time given in seconds, fractions included, within `range` of seconds.
    pub(super) fn seconds(
        &self,
        names: &[&str],
        range: RangeInclusive<f64>,
        notes: &mut Notes,
    ) -> Option<At<Duration>> {
        let (key, node) = self.one_of(names, notes)?;
        let seconds = number(node).filter(|seconds| range.contains(seconds));
        if seconds.is_none() {
            let expected = format!("seconds, from {} to {}", range.start(), range.end());
            self.wrong(key, node, &expected, notes);
        }
        seconds.map(|value| At {
            value: Duration::from_millis((value * 1_000.0).round() as u64),
            line: node.line,
        })
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
            Value::Map(entries) => entries,
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
