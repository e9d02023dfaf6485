//! Who may ask what: keys and tokens, the permissions they carry, and how much is answered at all.
//!
//! Which permission a route wants stands at the route, in its part of the OpenAPI document. A route that says
//! nothing is refused to everybody.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi;

use super::document::{operations, permission};
use super::error::ApiError;
use super::holders::Holders;
use super::keys::grants;
use super::rate::{Caller, Rate};
use crate::Error;
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
            holders: Holders::load(&config.auth, Instant::now())?,
            rate: Rate::new(config.max_requests_per_second),
        })
    }

    /// # Errors
    /// Why it is not answered.
    fn check(&self, request: &Request, route: &str) -> Result<(), Refusal> {
        // A GET without its body.
        let method = if request.method() == Method::HEAD { "GET" } else { request.method().as_str() };
        let permission = match self.wanted.get(&(method.to_owned(), route.to_owned())) {
            // What is no operation is refused by the router, whoever asks.
            None | Some(Wanted::Nothing) => return Ok(()),
            Some(Wanted::Permission(permission)) => permission,
        };
        let now = Instant::now();
        let stranger = Caller::Address(address(request));
        let (caller, answer) = match &self.holders {
            None => (stranger, Ok(())),
            Some(holders) => match holders.known(now).holder(request.headers()) {
                Err(refusal) => (stranger, Err(refusal)),
                Ok((caller, permissions)) => {
                    let may = permissions.iter().any(|granted| grants(granted, permission));
                    (caller, may.then_some(()).ok_or_else(|| Refusal::NotPermitted(permission.clone())))
                }
            },
        };
        if self.rate.admits(caller, now) { answer } else { Err(Refusal::TooMany) }
    }
}

/// Where a request comes from, if the server says.
fn address(request: &Request) -> Option<IpAddr> {
    request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip())
}

/// Why a request is not answered.
pub(super) enum Refusal {
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
        && let Err(refusal) = guard.check(&request, route.as_str())
    {
        let refusal = refusal.into_response();
        tracing::info!(route = route.as_str(), status = refusal.status().as_u16(), "Refused an API request");
        return refusal;
    }
    next.run(request).await
}
