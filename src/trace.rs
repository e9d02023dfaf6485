//! Which trace something belongs to, as headers carry it: W3C trace context.

use std::sync::Arc;

use crate::broker::Headers;
use crate::message::header;

/// A longer `tracestate` is not passed on.
const STATE_BYTES: usize = 512;

/// A place in a trace: the span that what comes next is a child of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; never 0.
    pub trace_id: u128,
    /// The span; never 0.
    pub span_id: u64,
    /// Whether whoever began the trace wants its spans.
    pub sampled: bool,
    /// What other tracing systems want passed on.
    state: Option<Arc<str>>,
}

impl TraceContext {
    /// The beginning of a new trace.
    pub fn root() -> Self {
        Self { trace_id: rand::random::<u128>().max(1), span_id: new_span_id(), sampled: true, state: None }
    }

    /// Reads `traceparent` and `tracestate`. A `traceparent` that the W3C's text calls invalid is as good as none.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let mut parts = traceparent.trim().split('-');
        let version = hex(parts.next()?, 2)?;
        let trace_id = hex(parts.next()?, 32)?;
        let span_id = hex(parts.next()?, 16)? as u64;
        let flags = hex(parts.next()?, 2)?;
        // Later versions may say more behind this; the first one may not.
        let too_long = version == 0 && parts.next().is_some();
        if version == 0xff || trace_id == 0 || span_id == 0 || too_long {
            return None;
        }
        let usable = |state: &&str| {
            (1..=STATE_BYTES).contains(&state.len()) && state.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        };
        let state = tracestate.map(str::trim).filter(usable).map(Arc::from);
        Some(Self { trace_id, span_id, sampled: flags & 1 == 1, state })
    }

    /// Another span of the same trace.
    pub fn with_span(&self, span_id: u64) -> Self {
        Self { span_id, ..self.clone() }
    }

    /// A new span of the same trace.
    pub fn child(&self) -> Self {
        self.with_span(new_span_id())
    }

    /// The header of this name.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }

    /// The header of this name, where there is one.
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// What a message's headers say.
    pub fn of(headers: &Headers) -> Option<Self> {
        Self::parse(headers.text(header::TRACEPARENT)?, headers.text(header::TRACESTATE))
    }

    /// Has a message carry it.
    pub fn write(&self, headers: &mut Headers) {
        headers.set(header::TRACEPARENT, self.traceparent());
        if let Some(state) = self.tracestate() {
            headers.set(header::TRACESTATE, state);
        }
    }

    /// As one text, for the store.
    pub(crate) fn stored(&self) -> String {
        match self.tracestate() {
            Some(state) => format!("{} {state}", self.traceparent()),
            None => self.traceparent(),
        }
    }

    /// What [`stored`](Self::stored) wrote.
    pub(crate) fn from_stored(text: &str) -> Option<Self> {
        match text.split_once(' ') {
            Some((parent, state)) => Self::parse(parent, Some(state)),
            None => Self::parse(text, None),
        }
    }
}

fn new_span_id() -> u64 {
    rand::random::<u64>().max(1)
}

/// A number of exactly so many digits, small ones only.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let well_formed =
        text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    well_formed.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn what_is_read_is_written_again() {
        let text = format!("00-{TRACE}-b7ad6b7169203331-01");
        let context = TraceContext::parse(&text, Some("rojo=1,congo=2")).unwrap();
        assert_eq!((context.traceparent(), context.tracestate()), (text, Some("rojo=1,congo=2")));
        assert!(context.sampled);
        assert_eq!(TraceContext::from_stored(&context.stored()), Some(context.clone()));
        let child = context.child();
        assert_eq!((child.trace_id, child.tracestate()), (context.trace_id, context.tracestate()));
        assert_ne!(child.span_id, context.span_id);

        let mut headers = Headers::default();
        child.write(&mut headers);
        assert_eq!(TraceContext::of(&headers), Some(child));
        assert_eq!(TraceContext::of(&Headers::default()), None);
    }

    #[test]
    fn a_caller_that_wants_no_spans_is_believed_and_other_flags_are_not_passed_on() {
        let parse =
            |flags: &str| TraceContext::parse(&format!("00-{TRACE}-b7ad6b7169203331-{flags}"), None).unwrap();
        assert!(!parse("00").sampled);
        assert!(parse("00").child().traceparent().ends_with("-00"));
        assert!(parse("ff").traceparent().ends_with("-01"));
        assert!(!parse("02").sampled);
    }

    #[test]
    fn a_later_version_may_say_more() {
        let later = format!("01-{TRACE}-b7ad6b7169203331-01-what-comes-then");
        let context = TraceContext::parse(&later, None).unwrap();
        assert_eq!(context.traceparent(), format!("00-{TRACE}-b7ad6b7169203331-01"));
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        for wrong in [
            "".to_owned(),
            "00".to_owned(),
            format!("00-{TRACE}"),
            format!("00-{TRACE}-b7ad6b7169203331"),
            format!("00-{TRACE}-b7ad6b7169203331-01-more"),
            format!("00-{TRACE}-b7ad6b7169203331-1"),
            format!("00-{TRACE}-b7ad6b716920333-01"),
            format!("00-{}-b7ad6b7169203331-01", TRACE.to_uppercase()),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("ff-{TRACE}-b7ad6b7169203331-01"),
            format!("00-+{}-b7ad6b7169203331-01", &TRACE[1..]),
            format!("00_{TRACE}_b7ad6b7169203331_01"),
            format!("0é-{TRACE}-b7ad6b7169203331-01"),
        ] {
            assert_eq!(TraceContext::parse(&wrong, None), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_tracestate_that_cannot_be_passed_on_is_left_out_and_the_trace_goes_on() {
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        for state in ["", "a=\u{1}", "a=é", &"x".repeat(STATE_BYTES + 1)] {
            let context = TraceContext::parse(&parent, Some(state)).unwrap();
            assert_eq!(context.tracestate(), None, "{state:?}");
        }
    }
}
