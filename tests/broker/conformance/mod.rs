//! What worker and orchestrator rely on, asserted of every broker: one function per behaviour.
//!
//! [`conformance!`] makes a test of each. It takes the name of a module, and a function that connects to the
//! broker under test: `async fn(prefix: &str) -> Arc<dyn Broker>`. Every test gets a prefix of its own for all
//! its queues and exchanges, so that one broker can serve all tests at once. A second function removes them.

pub(crate) mod dead_letters;
pub(crate) mod delivering;
pub(crate) mod ending;
pub(crate) mod publishing;
pub(crate) mod retrying;
pub(crate) mod topology;

/// Makes a module of tests, one per behaviour.
macro_rules! conformance {
    ($broker:ident, $connect:expr, $clean_up:expr) => {
        mod $broker {
            use super::*;

            $crate::conformance::conformance! { @tests $connect, $clean_up;
                publishing: [
                    a_confirmed_message_is_in_its_queue_as_it_was_sent,
                    the_default_exchange_routes_by_queue_name,
                    requests_find_their_namespace_by_any_key,
                    two_matching_bindings_give_one_copy,
                    what_no_queue_wants_goes_to_the_unroutable_queue,
                    what_nothing_wants_is_not_confirmed,
                    a_missing_exchange_is_reported_and_harms_nothing_else,
                    every_message_gets_its_own_answer,
                    publishers_share_a_broker,
                    a_thousand_messages_keep_their_order,
                    bodies_may_be_empty_or_large,
                    keys_too_long_for_the_protocol_are_refused,
                ]
                delivering: [
                    prefetch_bounds_what_is_handed_out,
                    an_ack_makes_room_for_the_next_message,
                    two_consumers_share_a_queue,
                    an_acked_message_is_forgotten,
                    acks_in_any_order_leave_the_others_unsettled,
                    a_released_message_comes_back_first,
                    a_dropped_delivery_comes_back_and_counts,
                    a_control_message_reaches_every_subscriber,
                    a_control_message_without_subscribers_is_not_confirmed,
                ]
                ending: [
                    a_cancelled_subscription_drains_and_its_deliveries_can_be_settled,
                    a_cancelled_subscription_can_hand_back_what_it_has_not_started,
                    a_dropped_subscription_gives_back_what_nobody_read,
                    a_subscription_tells_where_it_stands,
                    a_closed_broker_answers_that_it_is_closed,
                    every_submitted_message_is_heard_of_once_whatever_becomes_of_the_broker,
                ]
                dead_letters: [
                    a_rejected_message_is_parked_and_reported,
                    a_rejected_message_without_a_dead_letter_exchange_is_gone,
                    a_message_retried_too_often_is_parked_and_reported,
                    an_expired_message_is_parked_without_its_expiration,
                    only_the_oldest_message_expires,
                    a_dead_letter_can_be_replayed,
                    a_retry_that_dies_tells_its_first_death_and_its_last,
                ]
                retrying: [
                    a_retry_waits_its_rung_and_is_reported_at_once,
                    rungs_do_not_wait_for_each_other,
                    a_rung_that_does_not_exist_is_unroutable_and_unreported,
                    the_sooner_of_rung_and_expiration_ends_the_wait,
                ]
                topology: [
                    declaring_twice_changes_nothing,
                    a_queue_with_other_arguments_is_refused_by_name,
                    an_exchange_with_other_arguments_is_refused_by_name,
                    verify_names_what_is_missing_and_creates_nothing,
                    depth_counts_what_waits,
                ]
            }
        }
    };
    (@tests $connect:expr, $clean_up:expr; $($topic:ident: [$($behaviour:ident,)+])+) => {
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let prefix = support::unique_prefix(stringify!($behaviour));
                let broker: std::sync::Arc<dyn tasker_worker_rust::broker::Broker> = $connect(&prefix).await;
                let names = tasker_worker_rust::broker::topology::Names::new(prefix);
                conformance::$topic::$behaviour(std::sync::Arc::clone(&broker), names.clone()).await;
                broker.close().await;
                $clean_up(names).await;
            }
        )+)+
    };
}
pub(crate) use conformance;
