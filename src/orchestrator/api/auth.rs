//! Who may ask what: keys and tokens, the permissions they carry, and how much is answered at all.
//!
//! Which permission a route wants stands at the route, in its part of the OpenAPI document. A route that says
//! nothing is refused to everybody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi;

use super::document::{operations, permission};
use super::error::ApiError;
use super::keys::{Keys, grants};
use super::tokens::Tokens;
use crate::Error;
use crate::client::API_KEY;
use crate::config::{AuthConfig, OrchestratorConfig};

/// For programs: why nobody was let in.
const REASON: HeaderName = HeaderName::from_static("x-auth-failure-reason");

impl AuthConfig {
    /// Whether anybody has to show anything.
    pub fn is_on(&self) -> bool {
        self.api_keys_file.is_some() || self.jwt_public_key_file.is_some() || self.jwks_file.is_some()
    }
}

/// Stands before every route.
pub(super) struct Guard {
    /// What each route wants: nothing, where everybody may.
    wanted: HashMap<(String, String), Wanted>,
    /// `None` lets everybody in.
    holders: Option<Holders>,
    rate: Rate,
}

enum Wanted {
    Nothing,
    Permission(String),
}

struct Holders {
    keys: Keys,
    tokens: Option<Tokens>,
}

impl Guard {
    /// # Errors
    /// When a file of keys cannot be used.
    pub(super) fn new(config: &OrchestratorConfig, document: &OpenApi) -> Result<Self, Error> {
        let mut wanted = HashMap::new();
        for (path, item) in &mut document.paths.paths.clone() {
            for (method, operation) in operations(item) {
                let wants = match permission(operation) {
                    Some(permission) => Wanted::Permission(permission),
                    None if operation.security.is_some() => Wanted::Nothing,
                    None => Wanted::Permission(String::new()),
                };
                wanted.insert((method.to_uppercase(), path.clone()), wants);
            }
        }
        Ok(Self {
            wanted,
            holders: Holders::load(&config.auth)?,
            rate: Rate::new(config.max_requests_per_second),
        })
    }

    /// # Errors
    /// Why it is not answered.
    fn check(&self, method: &Method, route: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        // A GET without its body.
        let method = if method == Method::HEAD { "GET" } else { method.as_str() };
        let permission = match self.wanted.get(&(method.to_owned(), route.to_owned())) {
            // What is no operation is refused by the router, whoever asks.
            None | Some(Wanted::Nothing) => return Ok(()),
            Some(Wanted::Permission(permission)) => permission,
        };
        if !self.rate.admits(Instant::now()) {
            return Err(Refusal::TooMany);
        }
        let Some(holders) = &self.holders else { return Ok(()) };
        if holders.permissions(headers)?.iter().any(|granted| grants(granted, permission)) {
            return Ok(());
        }
        Err(Refusal::NotPermitted(permission.clone()))
    }
}

/// Why a request is not answered.
enum Refusal {
    TooMany,
    NothingShown,
    UnknownKey,
    /// And what is wrong with it.
    BadToken(&'static str),
    /// The permission that lacks.
    NotPermitted(String),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (code, message, reason) = match self {
            Self::TooMany => {
                let message = "too many requests; ask again in a second, or raise orchestrator.max_requests_per_second";
                let refusal = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED", message);
                return ([(header::RETRY_AFTER, "1")], refusal).into_response();
            }
            Self::NotPermitted(permission) => {
                let message = format_args!("this needs the permission {permission:?}, which your key or token lacks");
                let refusal = ApiError::new(StatusCode::FORBIDDEN, "FORBIDDEN", message);
                return ([(REASON, "missing_permission")], refusal).into_response();
            }
            Self::NothingShown => (
                "UNAUTHORIZED",
                "this needs a key in the header X-API-Key, or a token as Authorization: Bearer; with our own commands, \
                 set TASKER_API_KEY or --api-key-file"
                    .to_owned(),
                "missing_credentials",
            ),
            Self::UnknownKey => ("AUTHENTICATION_FAILED", "the API key is not known".to_owned(), "unknown_key"),
            Self::BadToken(problem) => {
                ("AUTHENTICATION_FAILED", format!("the token is refused: {problem}"), "invalid_token")
            }
        };
        let refusal = ApiError::new(StatusCode::UNAUTHORIZED, code, message);
        ([(header::WWW_AUTHENTICATE, "Bearer"), (REASON, reason)], refusal).into_response()
    }
}

/// Lets a request through, or answers it.
pub(super) async fn guard(
    State(guard): State<Arc<Guard>>,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(route) = &route
        && let Err(refusal) = guard.check(request.method(), route.as_str(), request.headers())
    {
        let refusal = refusal.into_response();
        tracing::info!(route = route.as_str(), status = refusal.status().as_u16(), "Refused an API request");
        return refusal;
    }
    next.run(request).await
}

impl Holders {
    fn load(config: &AuthConfig) -> Result<Option<Self>, Error> {
        if !config.is_on() {
            return Ok(None);
        }
        Ok(Some(Self { keys: Keys::load(config)?, tokens: Tokens::load(config)? }))
    }

    /// What the token, or else the key, in these headers permits.
    fn permissions(&self, headers: &HeaderMap) -> Result<Vec<String>, Refusal> {
        if let (Some(tokens), Some(token)) = (&self.tokens, bearer(headers)) {
            let claims = tokens.verify(token.trim()).map_err(Refusal::BadToken)?;
            tracing::debug!(subject = claims.sub, "An API request has a token");
            return Ok(claims.permissions);
        }
        let key = headers.get(API_KEY).ok_or(Refusal::NothingShown)?;
        self.keys.permissions(key.as_bytes()).ok_or(Refusal::UnknownKey)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

/// How many requests are answered: a second's worth at once, and as many a second from then on.
struct Rate {
    per_second: f64,
    /// What is left, and when that was counted.
    left: Mutex<(f64, Instant)>,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: Mutex::new((per_second, Instant::now())) }
    }

    fn admits(&self, now: Instant) -> bool {
        let mut state = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, counted) = *state;
        let earned = now.saturating_duration_since(counted).as_secs_f64() * self.per_second;
        let left = (left + earned).min(self.per_second);
        let admits = left >= 1.0;
        *state = (if admits { left - 1.0 } else { left }, now.max(counted));
        admits
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_admits_a_seconds_worth_at_once_and_then_what_time_brings() {
        let rate = Rate::new(3);
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let admitted: Vec<bool> =
            [0, 0, 0, 0, 400, 400, 10_000].map(|millis| rate.admits(after(millis))).to_vec();
        assert_eq!(admitted, [true, true, true, false, true, false, true]);
    }
}
