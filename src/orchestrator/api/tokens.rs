//! Tokens: JWTs signed by somebody whose public key we have.

use std::path::Path;

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result as JwtResult};
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation, decode, decode_header};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

use crate::Error;
use crate::config::AuthConfig;

/// Whose tokens are accepted.
pub(super) struct Tokens {
    /// Each with its id, where it has one.
    keys: Vec<(Option<String>, DecodingKey)>,
    rules: Validation,
}

/// What a token says of who holds it.
#[derive(Deserialize)]
pub(super) struct Claims {
    pub(super) sub: String,
    #[serde(default)]
    pub(super) permissions: Vec<String>,
}

impl Tokens {
    /// # Errors
    /// When a file of keys cannot be used.
    pub(super) fn load(config: &AuthConfig) -> Result<Option<Self>, Error> {
        let keys = match (&config.jwt_public_key_file, &config.jwks_file) {
            (Some(path), _) => {
                let wrong = |problem| unusable("orchestrator.auth.jwt_public_key_file", path, problem);
                let key = DecodingKey::from_rsa_pem(&read(path)?)
                    .map_err(|_| wrong("no RSA public key in PEM (-----BEGIN PUBLIC KEY-----)".to_owned()))?;
                vec![(None, key)]
            }
            (None, Some(path)) => key_set(&read(path)?)
                .map_err(|problem| unusable("orchestrator.auth.jwks_file", path, problem))?,
            (None, None) => return Ok(None),
        };
        // Whoever embeds this crate may have chosen another before, which does as well.
        let _ = RING.install_default();
        let mut rules = Validation::new(Algorithm::RS256);
        rules.set_issuer(&[&config.jwt_issuer]);
        rules.set_audience(&[&config.jwt_audience]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        rules.validate_nbf = true;
        Ok(Some(Self { keys, rules }))
    }

    /// # Errors
    /// Why the token counts for nothing.
    pub(super) fn verify(&self, token: &str) -> Result<Claims, &'static str> {
        let header = decode_header(token).map_err(|_| "it is no JWT")?;
        let (_, key) = match &header.kid {
            None if self.keys.len() == 1 => self.keys.first(),
            id => self.keys.iter().find(|(known, _)| known.is_none() || known == id),
        }
        .ok_or("its key (kid) is not one of ours")?;
        let decoded = decode::<Claims>(token, key, &self.rules).map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => "it has expired",
            ErrorKind::ImmatureSignature => "it is not valid yet",
            ErrorKind::InvalidAlgorithm => "it is not signed with RS256",
            ErrorKind::InvalidIssuer => "it has another issuer (iss)",
            ErrorKind::InvalidAudience => "it is for another audience (aud)",
            ErrorKind::InvalidSignature => "its signature is wrong",
            _ => "it lacks exp, iss, aud or sub, or one of its claims has the wrong type",
        })?;
        Ok(decoded.claims)
    }
}

fn key_set(text: &[u8]) -> Result<Vec<(Option<String>, DecodingKey)>, String> {
    let set: JwkSet =
        serde_json::from_slice(text).map_err(|error| format!("no JSON Web Key Set: {error}"))?;
    let rsa = set.keys.iter().filter(|key| matches!(key.algorithm, AlgorithmParameters::RSA(_)));
    let keys = rsa.map(|key| Ok((key.common.key_id.clone(), DecodingKey::from_jwk(key)?)));
    let keys = keys.collect::<JwtResult<Vec<_>>>().map_err(|error| error.to_string())?;
    if keys.is_empty() { Err("it has no RSA key".to_owned()) } else { Ok(keys) }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

pub(super) fn unusable(setting: &str, path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::Config(vec![format!("{setting}: cannot use {}: {problem}", path.display())])
}

/// Only checks signatures, and those with the cryptography that TLS uses too.
static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: |algorithm, key| match algorithm {
        Algorithm::RS256 => Ok(Box::new(Rs256(key.clone()))),
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    },
    key_utils: KeyUtils::new_unimplemented(),
};

struct Rs256(DecodingKey);

impl Verifier<Vec<u8>> for Rs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let checked = match self.0.kind() {
            DecodingKeyKind::SecretOrDer(key) => {
                UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key).verify(message, signature)
            }
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
        };
        checked.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Rs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::RS256
    }
}
