//! `dead-letters`: what was parked, why, and what to do with it.

mod print;

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use clap::Subcommand;
use jiff::{Span, SpanRelativeTo, Timestamp};
use tasker_worker_rust::broker::Broker;
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::client::Client;
use tasker_worker_rust::dead_letters::{Filter, Letter, Replayed, release, take};
use tasker_worker_rust::{Config, Error};

use self::print::{Row, report};
use super::topology::{Namespaces, connected};
use super::{Answer, Api, Output};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List dead letters and count them by step and reason; nothing is changed.
    List(Selection),
    /// Show everything about dead letters: why they are here, their headers, their requests.
    Show(Selection),
    /// Run steps again whose cause of death is gone. Their tasks go on.
    Replay(Replay),
    /// Remove dead letters for good.
    Discard(Discard),
}

#[derive(Debug, clap::Args)]
pub(super) struct Selection {
    /// These alone, by message id or step uuid.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    namespaces: Namespaces,
    /// Those of this step.
    #[arg(long, value_name = "NAME")]
    step: Option<String>,
    /// Those with this error code.
    #[arg(long)]
    code: Option<String>,
    /// Those with this reason.
    #[arg(long)]
    reason: Option<String>,
    /// Those that failed longer ago than this, as in 90s, 1h or 2d.
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Option<Duration>,
    /// Those that failed within this time.
    #[arg(long, value_name = "AGE", value_parser = age)]
    newer_than: Option<Duration>,
    /// The oldest ones, so many.
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
}

/// Letters that something is done to.
#[derive(Debug, clap::Args)]
struct Chosen {
    #[command(flatten)]
    selection: Selection,
    /// Every one of them; needed where nothing else says which.
    #[arg(long)]
    all: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Replay {
    #[command(flatten)]
    chosen: Chosen,
    /// At most so many per second.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Leave out what was replayed so often and died again.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    max_replays: u32,
    /// Replay it however often it was replayed before.
    #[arg(long)]
    again: bool,
    /// Do not ask the orchestrator whether the step is still wanted.
    #[arg(long)]
    unchecked: bool,
    #[command(flatten)]
    api: Api,
}

#[derive(Debug, clap::Args)]
pub(super) struct Discard {
    #[command(flatten)]
    chosen: Chosen,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

impl Command {
    pub(super) async fn run(&self, config: Config, output: Output) -> Result<Answer, Error> {
        match self {
            Self::List(_) => {}
            Self::Show(selection) if selection.ids.is_empty() => {
                return Err(Error::Config(vec!["say which dead letters: `list` names them".to_owned()]));
            }
            Self::Show(_) => {}
            Self::Replay(Replay { chosen, .. }) | Self::Discard(Discard { chosen, .. }) => {
                chosen.must_say_which()?;
            }
        }
        if let Self::Discard(discard) = self
            && !discard.yes
            && !discard.chosen.dry_run
            && !std::io::stdin().is_terminal()
        {
            return Err(Error::Config(vec!["nobody can be asked here: confirm with --yes".to_owned()]));
        }
        let broker = RabbitBroker::connect(&config.broker, "dead-letters")?;
        let answer = async {
            connected(&broker, &config).await?;
            match self {
                Self::List(selection) => selection.list(&broker, &config, output).await,
                Self::Show(selection) => selection.show(&broker, &config, output).await,
                Self::Replay(replay) => replay.run(&broker, &config, output).await,
                Self::Discard(discard) => discard.run(&broker, &config, output).await,
            }
        };
        let answer = answer.await;
        broker.close().await;
        answer
    }
}

impl Chosen {
    fn must_say_which(&self) -> Result<(), Error> {
        let Selection { ids, namespaces, step, code, reason, older_than, newer_than, limit } =
            &self.selection;
        let says = !ids.is_empty()
            || !namespaces.namespaces.is_empty()
            || limit.is_some()
            || [step, code, reason].into_iter().any(Option::is_some)
            || older_than.or(*newer_than).is_some();
        if says || self.all {
            return Ok(());
        }
        Err(Error::Config(vec!["say which dead letters, by id or filter, or give --all".to_owned()]))
    }
}

impl Selection {
    /// Takes hold of the letters of all namespaces, and says how many more there are. All are held to the end,
    /// so that those that stay go back in their order.
    async fn take(&self, broker: &dyn Broker, config: &Config) -> Result<(Vec<Letter>, u64), Error> {
        let names = config.names();
        let all_known = self.namespaces.namespaces.is_empty();
        let (mut letters, mut unseen) = (Vec::new(), 0);
        for namespace in self.namespaces.resolve(config)? {
            let unused = all_known && broker.depth(&names.dead_letter_queue(&namespace)).await?.is_none();
            if unused {
                continue;
            }
            let (taken, left) = take(broker, &names, &namespace).await?;
            letters.extend(taken);
            unseen += left;
        }
        Ok((letters, unseen))
    }

    fn filter(&self) -> Result<Filter, Error> {
        let now = Timestamp::now();
        let ago = |age: Option<Duration>| {
            age.map(|age| now.saturating_sub(age)).transpose().map_err(|e| Error::Config(vec![e.to_string()]))
        };
        Ok(Filter {
            ids: self.ids.clone(),
            step: self.step.clone(),
            code: self.code.clone(),
            reason: self.reason.clone(),
            before: ago(self.older_than)?,
            after: ago(self.newer_than)?,
        })
    }

    fn limit(&self) -> usize {
        self.limit.unwrap_or(usize::MAX)
    }

    async fn list(&self, broker: &dyn Broker, config: &Config, output: Output) -> Result<Answer, Error> {
        let filter = self.filter()?;
        let (letters, unseen) = self.take(broker, config).await?;
        let meant: Vec<&Letter> = letters.iter().filter(|letter| filter.matches(letter)).collect();
        print::list(&meant, self.limit(), unseen, output);
        release(letters);
        Ok(Answer::Yes)
    }

    async fn show(&self, broker: &dyn Broker, config: &Config, output: Output) -> Result<Answer, Error> {
        let filter = self.filter()?;
        let (letters, unseen) = self.take(broker, config).await?;
        let meant = letters.iter().filter(|letter| filter.matches(letter)).take(self.limit());
        print::show(&meant.collect::<Vec<_>>(), output);
        let missing = self.missing(&letters);
        for id in &missing {
            eprintln!("no dead letter has the message id or step {id}");
        }
        say_unseen(unseen);
        release(letters);
        Ok(if missing.is_empty() { Answer::Yes } else { Answer::No })
    }

    /// The ids that no letter has.
    fn missing(&self, letters: &[Letter]) -> Vec<String> {
        let ids = self.ids.iter().cloned();
        let filter = |id: &String| Filter { ids: vec![id.clone()], ..Filter::default() };
        ids.filter(|id| !letters.iter().any(|letter| filter(id).matches(letter))).collect()
    }

    fn missing_rows(&self, letters: &[Letter]) -> Vec<Row> {
        let row = |message_id| Row {
            message_id,
            namespace: String::new(),
            step: None,
            outcome: "skipped",
            why: Some("no dead letter has this message id or step".to_owned()),
        };
        self.missing(letters).into_iter().map(row).collect()
    }
}

fn say_unseen(unseen: u64) {
    if unseen > 0 {
        eprintln!("{unseen} more dead letters could not be looked at; run the command again for them");
    }
}

impl Replay {
    async fn run(&self, broker: &dyn Broker, config: &Config, output: Output) -> Result<Answer, Error> {
        let filter = self.chosen.selection.filter()?;
        let client = (!self.unchecked).then(|| self.api.client(config)).transpose()?;
        let (mut letters, unseen) = self.chosen.selection.take(broker, config).await?;
        let (publisher, names) = (broker.publisher(), config.names());
        let mut pace = self.rate.map(|rate| tokio::time::interval(Duration::from_secs(1) / rate));
        let mut rows = self.chosen.selection.missing_rows(&letters);
        let meant =
            letters.iter_mut().filter(|letter| filter.matches(letter)).take(self.chosen.selection.limit());
        for letter in meant {
            let row = Row::of(letter);
            if let Some(why_not) = self.objection(letter, client.as_ref()).await? {
                rows.push(row.end("skipped", Some(why_not)));
                continue;
            }
            if self.chosen.dry_run {
                rows.push(row.end("would be replayed", None));
                continue;
            }
            if let Some(pace) = &mut pace {
                pace.tick().await;
            }
            match letter.replay(&publisher, &names).await {
                Ok(Replayed::Done) => rows.push(row.end("replayed", None)),
                Ok(Replayed::StillParked) => {
                    let why = "but still parked; replaying it again does no harm".to_owned();
                    rows.push(row.end("replayed", Some(why)));
                }
                Err(error) => {
                    // Whatever is wrong with the broker would be wrong for the others as well.
                    rows.push(row.end("failed", Some(error.to_string())));
                    break;
                }
            }
        }
        release(letters);
        say_unseen(unseen);
        Ok(report(&rows, output))
    }

    async fn objection(&self, letter: &Letter, client: Option<&Client>) -> Result<Option<String>, Error> {
        let max_replays = if self.again { u32::MAX } else { self.max_replays };
        match (letter.check(max_replays), client) {
            (Err(why_not), _) => Ok(Some(why_not)),
            (Ok(()), Some(client)) => letter.objection(client).await.map_err(unchecked),
            (Ok(()), None) => Ok(None),
        }
    }
}

/// Says how to do without the orchestrator.
fn unchecked(error: Error) -> Error {
    match error {
        Error::Api(problem) => Error::Api(format!(
            "{problem}; the orchestrator is asked whether the steps are still wanted, --unchecked replays without"
        )),
        other => other,
    }
}

impl Discard {
    async fn run(&self, broker: &dyn Broker, config: &Config, output: Output) -> Result<Answer, Error> {
        let filter = self.chosen.selection.filter()?;
        let (mut letters, unseen) = self.chosen.selection.take(broker, config).await?;
        let mut rows = self.chosen.selection.missing_rows(&letters);
        let meant =
            letters.iter_mut().filter(|letter| filter.matches(letter)).take(self.chosen.selection.limit());
        let meant: Vec<&mut Letter> = meant.collect();
        let agreed = self.chosen.dry_run || self.yes || meant.is_empty() || confirmed(meant.len());
        for letter in meant {
            let row = Row::of(letter);
            rows.push(if !agreed {
                row.end("kept", None)
            } else if self.chosen.dry_run {
                row.end("would be discarded", None)
            } else {
                match letter.discard() {
                    Ok(()) => row.end("discarded", None),
                    Err(error) => row.end("failed", Some(error.to_string())),
                }
            });
        }
        release(letters);
        say_unseen(unseen);
        Ok(report(&rows, output))
    }
}

fn confirmed(count: usize) -> bool {
    eprint!("discard {count} dead letters for good? [y/N] ");
    let mut answer = String::new();
    // Whoever cannot answer has not agreed.
    let _ = std::io::stderr().flush();
    let _ = std::io::stdin().lock().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

fn age(text: &str) -> Result<Duration, String> {
    let span: Span = text.parse().map_err(|error| format!("{error}; write it as 90s, 1h or 2d"))?;
    let duration =
        span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|error| error.to_string())?;
    Duration::try_from(duration).map_err(|_| "an age is not negative".to_owned())
}
