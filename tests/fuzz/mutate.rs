//! Inputs that are nearly right.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// What breaks decoders that trust their input, in all formats.
const TOKENS: &[&[u8]] = &[
    b"null",
    b"true",
    b"NaN",
    b"-0",
    b"1e999",
    b"-1e-999",
    b"0x10",
    b"18446744073709551616",
    b"-9223372036854775809",
    b"4294967296",
    b"99999999999999999999999999999999999999999999",
    b"0.1e1",
    b"1_000",
    b"\"\"",
    b"[]",
    b"{}",
    b"[{}]",
    b"\"\\ud800\"",
    b"\"\\u0000\"",
    b"\\",
    b"\0",
    b"\n",
    b"\r\n",
    b"\t",
    b"\x7f",
    b"\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xef\xbb\xbf",
    "\u{202e}".as_bytes(),
    "\u{1f980}".as_bytes(),
    b"\"",
    b"'",
    b",",
    b":",
    b": ",
    b"- ",
    b"  ",
    b"#",
    b"&a ",
    b"*a",
    b"!!binary ",
    b"!!float x",
    b"<<: *a",
    b"? ",
    b"|\n",
    b">-\n",
    b"---\n",
    b"...\n",
    b"%YAML 1.1\n",
    b"[x]\n",
    b"[[x]]\n",
    b"= 1\n",
    b"\"\"\"",
    b"2026-99-99T99:99:99Z",
    b"9999-12-31T23:59:59Z",
    b"-009999-01-01T00:00:00Z",
    b"00000000-0000-0000-0000-000000000000",
    b"environments:\n",
    b"steps:\n",
    b"max_attempts",
    b"4294967295",
    b"0",
];

/// Makes inputs out of a corpus; the same for the same seed.
pub(crate) struct Mutator<'c> {
    corpus: &'c [Vec<u8>],
}

impl<'c> Mutator<'c> {
    pub(crate) fn new(corpus: &'c [Vec<u8>]) -> Self {
        Self { corpus }
    }

    /// Input number `seed`: one to eight mutations of an item of the corpus.
    pub(crate) fn input(&self, seed: u64) -> Vec<u8> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut input = self.item(&mut rng).to_vec();
        // Mostly few: what is wrong in many places is refused at the first.
        for _ in 0..rng.random_range(1..=8).min(rng.random_range(1..=4)) {
            self.mutate(&mut input, &mut rng);
        }
        input
    }

    fn item(&self, rng: &mut StdRng) -> &'c [u8] {
        self.corpus.choose(rng).unwrap()
    }

    fn mutate(&self, input: &mut Vec<u8>, rng: &mut StdRng) {
        let (from, to) = part(input.len(), rng);
        match rng.random_range(0..13) {
            0 if !input.is_empty() => {
                let at = rng.random_range(0..input.len());
                input[at] ^= 1 << rng.random_range(0..8);
            }
            1 => input.insert(from, rng.random()),
            2 => drop(input.drain(from..to)),
            3 => input.truncate(from),
            4 => {
                let part = input[from..to].to_vec();
                input.splice(to..to, part);
            }
            5 => {
                let other = self.item(rng);
                let (a, b) = part(other.len(), rng);
                input.splice(from..to, other[a..b].iter().copied());
            }
            // A whole line again: a key that repeats.
            6 => {
                let lines: Vec<&[u8]> = input.split_inclusive(|byte| *byte == b'\n').collect();
                if let Some(line) = lines.choose(rng).map(|line| line.to_vec()) {
                    let at: usize =
                        lines[..rng.random_range(0..=lines.len())].iter().map(|line| line.len()).sum();
                    input.splice(at..at, line);
                }
            }
            // Another value, or another key.
            7 | 8 => {
                let token = *TOKENS.choose(rng).unwrap();
                let (from, to) = word(input, from);
                input.splice(from..to, token.iter().copied());
            }
            9 => {
                let token = *TOKENS.choose(rng).unwrap();
                input.splice(from..from, token.iter().copied());
            }
            10 => {
                let digits = rng.random_range(1..400);
                let number: Vec<u8> = (0..digits).map(|_| rng.random_range(b'0'..=b'9')).collect();
                let (from, to) = word(input, from);
                input.splice(from..to, number);
            }
            11 => {
                let depth = 1 << rng.random_range(0..12);
                let (open, close) =
                    *[("[", "]"), ("{\"a\":", "}"), ("{a: ", "}"), ("- ", "")].choose(rng).unwrap();
                let nest = format!("{}0{}", open.repeat(depth), close.repeat(depth));
                let (from, to) = word(input, from);
                input.splice(from..to, nest.into_bytes());
            }
            _ => {
                let text = (*TOKENS.choose(rng).unwrap()).repeat(rng.random_range(1..300));
                let (from, to) = word(input, from);
                input.splice(from..to, text);
            }
        }
    }
}

/// A short stretch of `length` bytes.
fn part(length: usize, rng: &mut StdRng) -> (usize, usize) {
    let from = rng.random_range(0..=length);
    (from, (from + rng.random_range(0..=64)).min(length))
}

/// The word around `at`: what stands between quotes, blanks and punctuation.
fn word(input: &[u8], at: usize) -> (usize, usize) {
    let inside = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    let before = input[..at].iter().rev().take_while(|byte| inside(byte)).count();
    let after = input[at..].iter().take_while(|byte| inside(byte)).count();
    (at - before, at + after)
}
