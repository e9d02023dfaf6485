//! The HTTP client for the orchestrator's API.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri, header};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use crate::api::{
    ErrorResponse, StepResponse, TaskListResponse, TaskQuery, TaskRequest, TaskResponse, TaskTiming,
    TemplateDetail, TemplateListResponse,
};
use crate::config::Secret;
use crate::error::Error;
use crate::template::{Template, document};

/// Carries an API key.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take, the time it was asked to wait left out: longer than the orchestrator's own
/// limit, so that its explanation arrives.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);

/// The longest single wait: short enough for proxies that close silent connections after a minute.
const LONGEST_POLL: Duration = Duration::from_secs(30);

/// How much later than the limit an answer may come.
const LATEST_ANSWER: Duration = Duration::from_secs(5);

/// The pause before an orchestrator that could not answer is asked again.
const OUTAGE_PAUSE: Duration = Duration::from_millis(500);

/// Talks to one orchestrator. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    /// Scheme, host, port and path prefix, without a slash at the end.
    base_url: String,
    key: Option<HeaderValue>,
}

/// What came of a submission.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// A task was made. Its `step_mapping` is filled in.
    Created(Box<TaskResponse>),
    /// The same task had been submitted before: this one.
    Exists(Uuid),
}

impl Submitted {
    /// The task, new or not.
    pub fn task_uuid(&self) -> Uuid {
        match self {
            Self::Created(task) => task.task_uuid,
            Self::Exists(task_uuid) => *task_uuid,
        }
    }
}

impl Client {
    /// A client for the orchestrator at `base_url`, such as `http://127.0.0.1:8080`. Connects when it is used.
    ///
    /// # Errors
    /// When that is not an `http://` address.
    pub fn new(base_url: &str) -> Result<Self, Error> {
        let refuse = |problem: &str| {
            let advice = "expected http://HOST:PORT; set --api-url or ORCHESTRATION_API_URL";
            Error::Config(vec![format!("the orchestrator's address {base_url:?} {problem}; {advice}")])
        };
        if base_url.contains('@') {
            // The address is not repeated: what stands before the @ may be secret.
            return Err(Error::Config(vec![
                "the orchestrator's address has a user name or password in it, which its API does not know; \
                 leave them out"
                    .to_owned(),
            ]));
        }
        let uri: Uri = base_url.trim().parse().map_err(|error| refuse(&format!("is no URL ({error})")))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(refuse("asks for TLS, which this client does not speak")),
            _ => return Err(refuse("does not start with http://")),
        }
        if uri.query().is_some() {
            return Err(refuse("has a query"));
        }
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let http = HttpClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { http, base_url: uri.to_string().trim_end_matches('/').to_owned(), key: None })
    }

    /// Shows this key with every request.
    ///
    /// # Errors
    /// When it has characters that no header can carry.
    pub fn with_api_key(self, key: Option<&Secret>) -> Result<Self, Error> {
        let header = |key: &Secret| {
            let mut value = HeaderValue::from_str(key.expose()).map_err(|_| {
                Error::Config(vec![
                    "the API key has characters that no key has; is its file the right one?".to_owned(),
                ])
            })?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        };
        Ok(Self { key: key.map(header).transpose()?, ..self })
    }

    /// The orchestrator's address.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Submits a task.
    ///
    /// # Errors
    /// As every call here: [`Error::Refused`] when the orchestrator says no, [`Error::Api`] when it cannot
    /// be reached or what answers is no orchestrator.
    pub async fn submit(&self, request: &TaskRequest) -> Result<Submitted, Error> {
        let body =
            serde_json::to_vec(request).expect("a task request has string keys only and always encodes");
        let answer = self.call(Method::POST, "/v1/tasks", Some(body), Duration::ZERO).await?;
        if answer.status == StatusCode::CONFLICT
            && let Ok(ErrorResponse { task_uuid: Some(existing), .. }) = serde_json::from_slice(&answer.body)
        {
            return Ok(Submitted::Exists(existing));
        }
        answer.read().map(Box::new).map(Submitted::Created)
    }

    /// Looks at a task.
    ///
    /// # Errors
    /// See [`submit`](Self::submit).
    pub async fn task(&self, task_uuid: Uuid) -> Result<TaskResponse, Error> {
        self.get(&format!("/v1/tasks/{task_uuid}")).await
    }

    /// Waits until a task is finished, and returns it; after `limit`, as it is by then. While the orchestrator
    /// cannot answer, it is asked again.
    ///
    /// # Errors
    /// When it refuses, or has not answered by the end of `limit`; see [`submit`](Self::submit).
    pub async fn wait(&self, task_uuid: Uuid, limit: Duration) -> Result<TaskResponse, Error> {
        let started = Instant::now();
        loop {
            let left = limit.saturating_sub(started.elapsed());
            let poll = left.min(LONGEST_POLL);
            let path = format!("/v1/tasks/{task_uuid}?wait={}", poll.as_secs_f64());
            let call = self.call(Method::GET, &path, None, poll);
            // The call's own patience is for orchestrators that are slow, not for those that are away.
            let answer = match tokio::time::timeout(left + LATEST_ANSWER, call).await {
                Ok(answer) => answer,
                Err(_) => Err(self.silent(limit)),
            };
            let answer = match answer {
                Ok(answer) if !answer.is_of_an_outage() => {
                    let task: TaskResponse = answer.read()?;
                    if task.is_finished() || started.elapsed() >= limit {
                        return Ok(task);
                    }
                    // The poll's time was up, or the task was finished for a moment and has been reopened.
                    continue;
                }
                Ok(answer) => answer.read(),
                Err(error) => Err(error),
            };
            let left = limit.saturating_sub(started.elapsed());
            if left.is_zero() {
                return answer;
            }
            tokio::time::sleep(left.min(OUTAGE_PAUSE)).await;
        }
    }

    /// Lists tasks, newest first.
    ///
    /// # Errors
    /// See [`submit`](Self::submit).
    pub async fn tasks(&self, query: &TaskQuery) -> Result<TaskListResponse, Error> {
        let (page, per_page) = (query.page.map(|n| n.to_string()), query.per_page.map(|n| n.to_string()));
        let parameters = [
            ("page", &page),
            ("per_page", &per_page),
            ("namespace", &query.namespace),
            ("status", &query.status),
            ("initiator", &query.initiator),
            ("source_system", &query.source_system),
        ];
        let pair =
            |(name, value): (&str, &Option<String>)| Some(format!("{name}={}", escape(value.as_ref()?)));
        let parameters: Vec<String> = parameters.into_iter().filter_map(pair).collect();
        self.get(&format!("/v1/tasks?{}", parameters.join("&"))).await
    }

    /// A task's steps with their results, in the template's order.
    ///
    /// # Errors
    /// See [`submit`](Self::submit).
    pub async fn steps(&self, task_uuid: Uuid) -> Result<Vec<StepResponse>, Error> {
        self.get(&format!("/v1/tasks/{task_uuid}/workflow_steps")).await
    }

    /// Where a task's time went.
    ///
    /// # Errors
    /// See [`submit`](Self::submit).
    pub async fn timing(&self, task_uuid: Uuid) -> Result<TaskTiming, Error> {
        self.get(&format!("/v1/tasks/{task_uuid}/timing")).await
    }

    /// One step of a task, by its name or id.
    ///
    /// # Errors
    /// See [`submit`](Self::submit).
    pub async fn step(&self, task_uuid: Uuid, step: &str) -> Result<StepResponse, Error> {
        self.get(&format!("/v1/tasks/{task_uuid}/workflow_steps/{}", escape(step))).await
    }

    /// Cancels a task.
    ///
    /// # Errors
    /// See [`submit`](Self::submit); a finished task cannot be cancelled.
    pub async fn cancel(&self, task_uuid: Uuid) -> Result<TaskResponse, Error> {
        self.call(Method::DELETE, &format!("/v1/tasks/{task_uuid}"), None, Duration::ZERO).await?.read()
    }

    /// The templates of one namespace, or of all.
    ///
    /// # Errors
    /// See [`submit`](Self::submit).
    pub async fn templates(&self, namespace: Option<&str>) -> Result<TemplateListResponse, Error> {
        match namespace {
            Some(namespace) => self.get(&format!("/v1/templates?namespace={}", escape(namespace))).await,
            None => self.get("/v1/templates").await,
        }
    }

    /// One template.
    ///
    /// # Errors
    /// See [`submit`](Self::submit).
    pub async fn template(
        &self,
        namespace: &str,
        name: &str,
        version: &str,
    ) -> Result<TemplateDetail, Error> {
        self.get(&format!("/v1/templates/{}/{}/{}", escape(namespace), escape(name), escape(version))).await
    }

    /// Registers a template; `false` when it was there already, with the same content.
    ///
    /// # Errors
    /// See [`submit`](Self::submit); a template that differs from the one of the same version is refused, with
    /// what differs.
    pub async fn register(&self, template: &Template) -> Result<bool, Error> {
        let body = document(template).to_string().into_bytes();
        let answer = self.call(Method::POST, "/v1/templates", Some(body), Duration::ZERO).await?;
        answer.read::<TemplateDetail>()?;
        Ok(answer.status == StatusCode::CREATED)
    }

    /// Asks any program of ours whether it can work, or only whether it is `live`, and returns what it says.
    ///
    /// # Errors
    /// When nothing answers, or what answers is not one of our programs.
    pub async fn health(&self, live: bool) -> Result<(bool, Value), Error> {
        let path = if live { "/health/live" } else { "/health/ready" };
        let answer = self.call(Method::GET, path, None, Duration::ZERO).await?;
        let report = serde_json::from_slice(&answer.body).map_err(|error| answer.not_understood(&error))?;
        Ok((answer.status.is_success(), report))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.call(Method::GET, path, None, Duration::ZERO).await?.read()
    }

    /// Sends a request; the answer may take `wait` longer than usual.
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        wait: Duration,
    ) -> Result<Answer, Error> {
        let url = format!("{}{path}", self.base_url);
        let key = self.key.iter().map(|key| (API_KEY, key.clone()));
        let mut request = Request::builder();
        if let Some(headers) = request.headers_mut() {
            headers.extend(key);
        }
        let request = request
            .method(&method)
            .uri(&url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| Error::Api(format!("{url:?} is no URL: {error}")))?;
        let exchange = async {
            let response = self.http.request(request).await.map_err(|error| self.unreachable(&error))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| self.unreachable(&error))?;
            Ok(Answer { url: format!("{method} {url}"), status, body: body.to_bytes() })
        };
        tokio::time::timeout(ANSWER_TIMEOUT + wait, exchange)
            .await
            .unwrap_or_else(|_| Err(self.silent(ANSWER_TIMEOUT + wait)))
    }

    fn silent(&self, limit: Duration) -> Error {
        let (base_url, limit) = (&self.base_url, limit.as_secs_f64());
        Error::Api(format!(
            "the orchestrator at {base_url} did not answer within {limit} s; try again, or look into its log"
        ))
    }

    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> Error {
        let cause = std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error);
        Error::Api(format!(
            "cannot reach the orchestrator at {}: {cause}; is it running? set --api-url or ORCHESTRATION_API_URL",
            self.base_url
        ))
    }
}

struct Answer {
    url: String,
    status: StatusCode,
    body: Bytes,
}

impl Answer {
    /// Whether another time may bring another answer: from a proxy before an orchestrator that is away, or from
    /// one whose store takes nothing.
    fn is_of_an_outage(&self) -> bool {
        self.status.is_server_error()
            || matches!(self.status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        if self.status.is_success() {
            return serde_json::from_slice(&self.body).map_err(|error| self.not_understood(&error));
        }
        match serde_json::from_slice(&self.body) {
            Ok(ErrorResponse { error, .. }) => {
                Err(Error::Refused { status: self.status.as_u16(), code: error.code, message: error.message })
            }
            Err(error) => Err(self.not_understood(&error)),
        }
    }

    fn not_understood(&self, error: &serde_json::Error) -> Error {
        Error::Api(format!(
            "{} was answered with status {}, but not by an orchestrator's API ({error}); \
             is --api-url or ORCHESTRATION_API_URL right?",
            self.url,
            self.status.as_u16()
        ))
    }
}

/// Percent-encodes everything that could mean something else in a path or a query.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte))
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
