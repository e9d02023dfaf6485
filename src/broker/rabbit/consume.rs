//! One consumer, kept up: connection, channel, limit of deliveries, subscription, and from the start again
//! whenever any of them ends.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Shared;
use super::declare;
use super::deliveries::{Deliveries, End};
use super::failure::{Failure, INTERNAL_ERROR, LEASE_EXCEEDED};
use super::link::{Link, LinkState};
use super::reconnect::{Tries, Trouble};
use crate::broker::{ConsumerState, Delivery, Source};
use crate::ops::metrics::METRICS;

/// Connections that may be lost while subscribing before that is taken for the queue's fault, and tried less often.
const SUSPECT_AFTER: u32 = 3;

pub(super) struct Supervisor {
    pub(super) shared: Arc<Shared>,
    pub(super) source: Source,
    pub(super) prefetch: u16,
    /// The consuming connection.
    pub(super) link: Link,
    /// The publishing connection: while the broker blocks it, nothing more is taken in.
    pub(super) publishing: Link,
    pub(super) deliveries: mpsc::UnboundedSender<Delivery>,
    pub(super) state: watch::Sender<ConsumerState>,
    pub(super) cancel: CancellationToken,
}

impl Supervisor {
    pub(super) async fn run(mut self) {
        let mut spent = 0;
        let mut tries = Tries::new();
        let mut suspected = 0;
        loop {
            let opened = tokio::select! {
                () = stop(&self.cancel, &self.shared.closing) => break,
                opened = open(&self.shared, &self.source, self.prefetch, &mut self.link, spent, &self.state) => opened,
            };
            let (failure, connection, worked) = match opened {
                Err((failure, connection)) => (failure, connection, false),
                Ok((channel, connection)) => {
                    info!(source = name(&self.source), "Consuming");
                    self.state.send_replace(ConsumerState::Consuming);
                    tries.worked();
                    suspected = 0;
                    match self.forward(channel).await {
                        End::Broken(failure) => (failure, connection, true),
                        End::Closed => break,
                        End::Cancelled(unsettled) => {
                            self.state.send_replace(ConsumerState::Draining);
                            // Ends the subscription's stream once it is empty.
                            drop(self.deliveries);
                            unsettled.settle(&mut self.link, connection, &self.shared.closing).await;
                            break;
                        }
                    }
                }
            };
            let broke_it = !worked && failure.cause == INTERNAL_ERROR;
            if failure.connection_lost && !broke_it {
                // The connection's keeper says so, and pauses.
                self.state.send_replace(ConsumerState::Connecting(failure.text));
                spent = connection;
                continue;
            }
            if worked {
                METRICS.reconnects.with_label_values(&[failure.cause]).inc();
            }
            let text = explain(&self.source, &failure);
            if tries.is_news(&text) {
                warn!(
                    source = name(&self.source),
                    reason = text,
                    "Not consuming; trying again until it works"
                );
            }
            self.state.send_replace(ConsumerState::Connecting(text));
            // What ended a consumer that worked, such as a delivery held for too long, does not keep the
            // next one from working.
            let passes = if broke_it {
                // Whoever was subscribing at that moment is suspected. The pauses part the innocent from the one
                // whose every try costs all of them their connection.
                spent = connection;
                suspected += 1;
                suspected < SUSPECT_AFTER
            } else {
                worked || failure.trouble == Trouble::Outage || self.restore(&failure).await
            };
            let pause = tries.pause(if passes { Trouble::Outage } else { Trouble::Refusal });
            tokio::select! {
                () = stop(&self.cancel, &self.shared.closing) => break,
                () = time::sleep(pause) => {}
            }
        }
        self.state.send_replace(ConsumerState::Stopped);
    }

    async fn forward(&mut self, channel: Deliveries) -> End {
        // A broadcast carries orders, not work: it goes on while the broker takes no messages.
        let publishing = matches!(self.source, Source::Queue(_)).then_some(&mut self.publishing);
        channel.forward(&self.deliveries, publishing, &self.cancel, &self.shared.closing).await
    }

    /// Declares again what was declared here before and is gone.
    async fn restore(&self, failure: &Failure) -> bool {
        let LinkState::Up(up) = self.link.state() else { return false };
        if failure.cause != "not_found" {
            return false;
        }
        let restoring = declare::restore(&self.shared, &up.connection, name(&self.source));
        match time::timeout(self.shared.access.connect_timeout, restoring).await {
            Ok(Ok(restored)) => restored,
            Ok(Err(problem)) => {
                warn!(missing = name(&self.source), reason = %problem, "Cannot declare it again");
                false
            }
            Err(_) => false,
        }
    }
}

async fn open(
    shared: &Shared,
    source: &Source,
    prefetch: u16,
    link: &mut Link,
    spent: u64,
    state: &watch::Sender<ConsumerState>,
) -> Result<(Deliveries, u64), (Failure, u64)> {
    let up =
        link.up(spent, |down| drop(state.send_replace(ConsumerState::Connecting(down.text.clone())))).await;
    let opening = Deliveries::open(&up.connection, source, prefetch);
    link.on(up.number, "subscribing", shared.access.connect_timeout, opening)
        .await
        .map(|deliveries| (deliveries, up.number))
        .map_err(|failure| (failure, up.number))
}

async fn stop(cancel: &CancellationToken, closing: &CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = closing.cancelled() => {}
    }
}

fn name(source: &Source) -> &str {
    match source {
        Source::Queue(name) | Source::Broadcast(name) => name,
    }
}

fn explain(source: &Source, failure: &Failure) -> String {
    let what = match source {
        Source::Queue(name) => format!("queue {name}"),
        Source::Broadcast(name) => format!("exchange {name}"),
    };
    let way_out = match failure.cause {
        "not_found" if failure.trouble == Trouble::Refusal => "; it has to be declared",
        "access_refused" => "; grant this user the read permission on it",
        INTERNAL_ERROR => {
            "; the broker's log says why. If the queue has lost its data, delete it and declare it again with \
             `tasker-worker-rust topology declare`: what was in it is sent again"
        }
        LEASE_EXCEEDED | "consumer_cancelled" => {
            "; where a step held its delivery for too long it runs again: lower its timeout_seconds, or raise \
             the broker's consumer_timeout and broker.consumer_timeout_seconds"
        }
        _ => "",
    };
    format!("cannot consume from {what}: {failure}{way_out}")
}

#[cfg(test)]
mod tests {
    use lapin::ErrorKind;
    use lapin::protocol::AMQPError;

    use super::*;

    /// The texts of RabbitMQ 3.10 to 4.2, and what it does since 4.3.
    #[test]
    fn a_lease_that_ran_out_is_named_with_what_to_do() {
        let text = "PRECONDITION_FAILED - delivery acknowledgement on channel 3 timed out. Timeout value used: \
                    1800000 ms. This timeout value can be configured, see consumers doc guide to learn more";
        let error: lapin::Error =
            ErrorKind::ProtocolError(AMQPError::from_id(406, text.into()).unwrap()).into();
        for failure in [Failure::from(&error), Failure::cancelled()] {
            let said = explain(&Source::Queue("tasker.steps.orders".to_owned()), &failure);
            assert!(said.starts_with("cannot consume from queue tasker.steps.orders: "), "{said}");
            assert!(said.contains("consumer_timeout and broker.consumer_timeout_seconds"), "{said}");
            assert_eq!(failure.trouble, Trouble::Outage, "the next consumer works");
        }
        assert_eq!(Failure::from(&error).cause, LEASE_EXCEEDED);
    }
}
