use std::collections::{HashMap, VecDeque};

/// What was done under which key, as far back as the latest `capacity` keys: a long-running worker must not
/// grow with every order.
#[derive(Debug)]
pub(super) struct Ledger<T> {
    entries: HashMap<String, T>,
    oldest_first: VecDeque<String>,
    capacity: usize,
}

impl<T> Ledger<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: HashMap::new(), oldest_first: VecDeque::new(), capacity }
    }

    pub(super) fn get(&self, key: &str) -> Option<&T> {
        self.entries.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut T> {
        self.entries.get_mut(key)
    }

    pub(super) fn insert(&mut self, key: &str, entry: T) {
        if self.entries.insert(key.to_owned(), entry).is_none() {
            self.oldest_first.push_back(key.to_owned());
        }
        if self.oldest_first.len() > self.capacity
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entry_makes_room_for_the_newest() {
        let mut ledger = Ledger::new(2);
        for (key, entry) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
            ledger.insert(key, entry);
        }
        assert_eq!((ledger.get("a"), ledger.get("b"), ledger.get("c")), (None, Some(&2), Some(&4)));
    }
}
