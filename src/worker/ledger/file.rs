//! The ledger's file: a first line that says what it is, then one record per answer, appended.
//!
//! A record is three numbers of four bytes, little-endian (the payload's length, the payload's checksum,
//! the checksum of these two), and the payload: a length, so many bytes of JSON, and the bodies. It is
//! handed to the system before the answer is published, and not forced to the disk: a crash of the process
//! loses nothing, a crash of the machine may.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use crc::{CRC_32_ISO_HDLC, Crc};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Answer, Key};
use crate::broker::Message;
use crate::config::LedgerConfig;

const FIRST_LINE: &[u8] = b"tasker-worker-rust ledger 1\n";

/// Length, checksum, checksum of both.
const PREFIX: usize = 12;

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Open for appending, and locked against other processes.
pub(super) struct LedgerFile {
    path: PathBuf,
    file: File,
    bytes: usize,
    records: usize,
    /// Its length after it was last written anew.
    compact_bytes: usize,
}

#[derive(Serialize, Deserialize)]
struct Head<M> {
    key: Key,
    messages: Vec<M>,
    body_bytes: Vec<usize>,
}

impl LedgerFile {
    /// Opens or creates it, and reads all of it, oldest record first.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<(Key, Answer)>)> {
        let mut file = locked(path)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        let content = Bytes::from(content);
        let (answers, mut bytes) = if FIRST_LINE.starts_with(&content) {
            // New, or cut off before anything was in it.
            (Vec::new(), 0)
        } else if content.starts_with(FIRST_LINE) {
            read(&content)?
        } else {
            return Err(invalid("it is no ledger; name another file".to_owned()));
        };
        if bytes < content.len() && bytes > 0 {
            warn!(
                path = %path.display(),
                cut_bytes = content.len() - bytes,
                "The ledger's last record was only begun; cutting it off"
            );
        }
        file.set_len(bytes as u64)?;
        file.seek(io::SeekFrom::End(0))?;
        if bytes == 0 {
            file.write_all(FIRST_LINE)?;
            bytes = FIRST_LINE.len();
        }
        let records = answers.len();
        Ok((Self { path: path.to_owned(), file, bytes, records, compact_bytes: 0 }, answers))
    }

    pub(super) fn append(&mut self, key: Key, answer: &[Arc<Message>]) -> io::Result<()> {
        let record = encode(key, answer)?;
        self.file.write_all(&record)?;
        self.bytes += record.len();
        self.records += 1;
        Ok(())
    }

    /// Whether half of it or more is beyond the limits.
    pub(super) fn is_too_large(&self, limits: &LedgerConfig) -> bool {
        self.records > limits.max_entries.saturating_mul(2)
            || self.bytes > limits.max_bytes.max(self.compact_bytes).saturating_mul(2)
    }

    /// Replaces the content in one step: a crash leaves the old file or the new one.
    pub(super) fn rewrite<'a>(&mut self, answers: impl Iterator<Item = (Key, &'a Answer)>) -> io::Result<()> {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let path = PathBuf::from(name);
        let file = locked(&path)?;
        file.set_len(0)?;
        let mut new = Self { path, file, bytes: FIRST_LINE.len(), records: 0, compact_bytes: 0 };
        new.file.write_all(FIRST_LINE)?;
        for (key, answer) in answers {
            new.append(key, answer)?;
        }
        std::fs::rename(&new.path, &self.path)?;
        new.path.clone_from(&self.path);
        new.compact_bytes = new.bytes;
        *self = new;
        Ok(())
    }
}

fn locked(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(io::Error::other("another worker uses it; give each worker a file of its own"))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn encode(key: Key, answer: &[Arc<Message>]) -> io::Result<Vec<u8>> {
    let body_bytes = answer.iter().map(|message| message.body.len()).collect();
    let messages: Vec<&Message> = answer.iter().map(Arc::as_ref).collect();
    let head = serde_json::to_vec(&Head { key, messages, body_bytes })?;
    let mut record = vec![0; PREFIX];
    record.extend(length(head.len())?.to_le_bytes());
    record.extend(head);
    for message in answer {
        record.extend_from_slice(&message.body);
    }
    let (prefix, payload) = record.split_at_mut(PREFIX);
    prefix[..4].copy_from_slice(&length(payload.len())?.to_le_bytes());
    prefix[4..8].copy_from_slice(&CRC.checksum(payload).to_le_bytes());
    let checksum = CRC.checksum(&prefix[..8]);
    prefix[8..].copy_from_slice(&checksum.to_le_bytes());
    Ok(record)
}

/// The records, and where the last whole one ends.
fn read(content: &Bytes) -> io::Result<(Vec<(Key, Answer)>, usize)> {
    let mut answers = Vec::new();
    let mut at = FIRST_LINE.len();
    while let Some(prefix) = content.get(at..at + PREFIX) {
        let damaged = || {
            invalid(format!(
                "the record at byte {at} is damaged; move the file away to start without it, \
                 knowing that steps which finished may run again"
            ))
        };
        if CRC.checksum(&prefix[..8]) != number(&prefix[8..]) {
            return Err(damaged());
        }
        let start = at + PREFIX;
        let end = start + number(prefix) as usize;
        if end > content.len() {
            break;
        }
        let payload = content.slice(start..end);
        if CRC.checksum(&payload) != number(&prefix[4..]) {
            return Err(damaged());
        }
        answers.push(decode(&payload).ok_or_else(damaged)?);
        at = end;
    }
    Ok((answers, at))
}

fn decode(payload: &Bytes) -> Option<(Key, Answer)> {
    let mut at = 4 + number(payload.get(..4)?) as usize;
    let Head::<Message> { key, mut messages, body_bytes } =
        serde_json::from_slice(payload.get(4..at)?).ok()?;
    for (message, bytes) in messages.iter_mut().zip(body_bytes) {
        // A copy, so that the whole file does not stay in memory for one answer of it.
        message.body = Bytes::copy_from_slice(payload.get(at..at + bytes)?);
        at += bytes;
    }
    Some((key, messages.into_iter().map(Arc::new).collect()))
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn length(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| invalid(format!("an answer of {bytes} bytes is too large for a record")))
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}
