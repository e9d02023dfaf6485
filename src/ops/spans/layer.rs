//! A handler's own `tracing` spans, as children of the span of its step.

use std::cell::RefCell;

use tracing::Subscriber;
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::{Kind, Span};
use crate::ops::logging::Fields;
use crate::trace::TraceContext;

thread_local! {
    static ADOPTED: RefCell<Option<TraceContext>> = const { RefCell::new(None) };
}

/// Makes a `tracing` span that stands for this place in a trace: the spans inside it become its children.
pub fn adopt(context: Option<&TraceContext>, make: impl FnOnce() -> tracing::Span) -> tracing::Span {
    if !super::enabled() {
        return make();
    }
    ADOPTED.with_borrow_mut(|adopted| *adopted = context.cloned());
    let span = make();
    // A filter may have kept the layer from seeing it.
    ADOPTED.with_borrow_mut(|adopted| *adopted = None);
    span
}

/// Sends the spans inside adopted ones to the collector. Which there are is up to the log's level.
#[derive(Debug, Clone, Copy)]
pub struct SpanLayer;

/// What an open `tracing` span is in its trace.
struct Open {
    context: TraceContext,
    /// Of one that is ours to send.
    span: Option<Span>,
    fields: Fields,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, registry: Context<'_, S>) {
        let Some(new) = registry.span(id) else { return };
        if let Some(context) = ADOPTED.with_borrow_mut(Option::take) {
            new.extensions_mut().insert(Open { context, span: None, fields: Fields::default() });
            return;
        }
        let parent = new.parent().and_then(|parent| Some(parent.extensions().get::<Open>()?.context.clone()));
        let Some(parent) = parent.filter(|parent| parent.sampled) else { return };
        let context = parent.child();
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let name = attributes.metadata().name();
        let span = Span::new(context.clone(), Some(parent.span_id), Kind::Internal, name)
            .with("code.namespace", attributes.metadata().target());
        new.extensions_mut().insert(Open { context, span: Some(span), fields });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, registry: Context<'_, S>) {
        if let Some(span) = registry.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            values.record(&mut open.fields);
        }
    }

    fn on_close(&self, id: Id, registry: Context<'_, S>) {
        let open = registry.span(&id).and_then(|span| span.extensions_mut().remove::<Open>());
        if let Some(Open { span: Some(mut span), fields, .. }) = open {
            span.attributes.extend(fields.0);
            span.end();
        }
    }
}
