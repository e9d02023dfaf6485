//! Who is known by a key or a token. The files that say so are read again when they have changed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use ring::digest::{SHA256, digest};

use super::auth::Refusal;
use super::keys::Keys;
use super::rate::Caller;
use super::tokens::Tokens;
use crate::Error;
use crate::client::API_KEY;
use crate::config::AuthConfig;

/// The time between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

pub(super) struct Holders {
    config: AuthConfig,
    seen: Mutex<Seen>,
}

/// What the last look at the files saw.
struct Seen {
    at: Instant,
    /// Of each file's content the digest, as the content is secret; nothing for one that could not be read.
    files: Vec<Option<Vec<u8>>>,
    known: Arc<Known>,
}

pub(super) struct Known {
    keys: Keys,
    tokens: Option<Tokens>,
}

impl Holders {
    /// `None` where everybody may do everything.
    ///
    /// # Errors
    /// When a file of keys cannot be used.
    pub(super) fn load(config: &AuthConfig, now: Instant) -> Result<Option<Self>, Error> {
        if !config.is_on() {
            return Ok(None);
        }
        let seen = Seen { at: now, files: digests(config), known: Arc::new(Known::load(config)?) };
        Ok(Some(Self { config: config.clone(), seen: Mutex::new(seen) }))
    }

    /// Who is known by now. A file that is no good any more locks nobody out.
    pub(super) fn known(&self, now: Instant) -> Arc<Known> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(seen.at) >= LOOK {
            seen.at = now;
            let files = digests(&self.config);
            if files != seen.files {
                seen.files = files;
                match Known::load(&self.config) {
                    Ok(known) => {
                        seen.known = Arc::new(known);
                        tracing::info!("Read the API's keys again");
                    }
                    Err(error) => {
                        tracing::warn!(%error, "The API's keys cannot be read again; those known before still count");
                    }
                }
            }
        }
        Arc::clone(&seen.known)
    }
}

impl Known {
    fn load(config: &AuthConfig) -> Result<Self, Error> {
        Ok(Self { keys: Keys::load(config)?, tokens: Tokens::load(config)? })
    }

    /// Who shows the token, or else the key, in these headers, and what that permits.
    pub(super) fn holder(&self, headers: &HeaderMap) -> Result<(Caller, Vec<String>), Refusal> {
        if let (Some(tokens), Some(token)) = (&self.tokens, bearer(headers)) {
            let claims = tokens.verify(token.trim()).map_err(Refusal::BadToken)?;
            tracing::debug!(subject = claims.sub, "An API request has a token");
            return Ok((Caller::Token(claims.sub), claims.permissions));
        }
        let key = headers.get(API_KEY).ok_or(Refusal::NothingShown)?;
        let key = self.keys.find(key.as_bytes()).ok_or(Refusal::UnknownKey)?;
        Ok((Caller::Key(key.digest), key.permissions.clone()))
    }
}

fn digests(config: &AuthConfig) -> Vec<Option<Vec<u8>>> {
    let files = [&config.api_keys_file, &config.jwt_public_key_file, &config.jwks_file];
    let digest = |path: &PathBuf| Some(digest(&SHA256, &std::fs::read(path).ok()?).as_ref().to_vec());
    files.into_iter().flatten().map(digest).collect()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn changed_keys_count_within_a_second_and_broken_ones_never() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| std::fs::write(file.path(), text).unwrap();
        let entry = |key: &str| format!("[[api_keys]]\nkey = {key:?}\npermissions = [\"tasks:*\"]\n");
        let (old, new) = ("the-old-key-of-all", "the-new-key-of-all");
        write(&entry(old));
        let config = AuthConfig { api_keys_file: Some(file.path().to_owned()), ..AuthConfig::default() };
        let start = Instant::now();
        let holders = Holders::load(&config, start).unwrap().unwrap();
        let knows = |key: &'static str, millis| {
            let headers = HeaderMap::from_iter([(API_KEY, HeaderValue::from_static(key))]);
            holders.known(start + Duration::from_millis(millis)).holder(&headers).is_ok()
        };
        write(&entry(new));
        assert!(knows(old, 999) && !knows(new, 999), "looked at more than once a second");
        assert!(knows(new, 1_000) && !knows(old, 1_000));
        write("[[api_keys]]\nkey = \"short\"\npermissions = []\n");
        assert!(knows(new, 2_000));
        std::fs::remove_file(file.path()).unwrap();
        assert!(knows(new, 3_000));
        write(&entry(old));
        assert!(knows(old, 4_000) && !knows(new, 4_000));
    }
}
