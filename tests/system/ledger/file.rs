//! The ledger's file: what a worker remembers over its own death.

use std::path::{Path, PathBuf};

use tasker_worker_rust::{Config, Error, RustWorker};

use super::lab::Lab;
use crate::on_both_brokers;
use crate::support::{Kind, eventually, within};

on_both_brokers! {
    a_killed_worker_answers_from_its_file_when_it_is_back
}

async fn a_killed_worker_answers_from_its_file_when_it_is_back(kind: Kind) {
    let mut lab = Lab::open(kind).await;
    let folder = tempfile::tempdir().unwrap();
    let (config, path) = with_file(&lab.desk.config, folder.path());
    let (handler, mut started, finish) = lab.slow_step();

    // One step whose result is known, and one that could tell nobody.
    let broker = lab.connect();
    let worker = lab.start(broker.clone(), config.clone(), handler.clone()).await;
    let known = lab.ask("slow").await;
    finish.add_permits(1);
    let first = lab.result().await;
    within(started.recv()).await;
    let unknown = lab.ask("slow").await;
    within(started.recv()).await;
    lab.stall();
    let before = size(&path);
    finish.add_permits(1);
    eventually("the answer is written", async || (size(&path) > before).then_some(())).await;
    lab.kill(worker, broker).await;

    let worker = lab.worker(config, handler).await;
    let mut told = lab.result().await;
    while told == first {
        // Its request was answered, and not acked yet when the worker was killed.
        told = lab.result().await;
    }
    let (result, id) = told;
    assert_eq!((result.step_uuid, id), (unknown.step_uuid, unknown.message_id("result")));
    lab.send_until("replayed", &known).await;
    assert_eq!(lab.result().await, first);
    worker.shutdown().await;
    lab.all_ran_once(2).await;
}

#[tokio::test]
async fn a_torn_record_is_cut_off_and_the_others_stay() {
    let mut lab = Lab::open(Kind::Embedded).await;
    let folder = tempfile::tempdir().unwrap();
    let (config, path) = with_file(&lab.desk.config, folder.path());
    let worker = lab.worker(config.clone(), lab.steps()).await;
    let first_line = size(&path);
    let request = lab.ask("answer").await;
    let first = lab.result().await;
    worker.shutdown().await;

    let whole = std::fs::read(&path).unwrap();
    let record = &whole[first_line..];
    for torn in [5, 12, 40, record.len() - 1] {
        std::fs::write(&path, [&whole, &record[..torn]].concat()).unwrap();
        let worker = lab.worker(config.clone(), lab.steps()).await;
        assert_eq!(size(&path), whole.len());
        lab.desk.send(&request).await;
        assert_eq!(lab.result().await, first);
        worker.shutdown().await;
    }
    // Even the first line may have been cut off.
    std::fs::write(&path, &whole[..first_line - 3]).unwrap();
    let worker = lab.worker(config, lab.steps()).await;
    assert_eq!(size(&path), first_line);
    worker.shutdown().await;
    lab.all_ran_once(1).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_refused_at_start() {
    let mut lab = Lab::open(Kind::Embedded).await;
    let folder = tempfile::tempdir().unwrap();
    let (config, path) = with_file(&lab.desk.config, folder.path());
    let worker = lab.worker(config.clone(), lab.steps()).await;
    let first_line = size(&path);
    lab.ask("answer").await;
    lab.result().await;
    let refused = async |config: &Config| {
        let worker = RustWorker::new(config.clone()).namespace(lab.steps()).broker(lab.connect());
        let Err(Error::Config(mistakes)) = worker.start().await else { panic!("the file is no good") };
        assert_eq!(mistakes.len(), 1);
        assert!(mistakes[0].starts_with("worker.ledger.path: "), "{mistakes:?}");
        mistakes[0].clone()
    };
    let in_use = refused(&config).await;
    assert!(in_use.ends_with("another worker uses it; give each worker a file of its own"), "{in_use}");
    worker.shutdown().await;

    let whole = std::fs::read(&path).unwrap();
    for damaged in [first_line, first_line + 6, first_line + 100, whole.len() - 1] {
        let mut content = whole.clone();
        content[damaged] ^= 1;
        std::fs::write(&path, &content).unwrap();
        let problem = refused(&config).await;
        assert!(problem.contains(&format!("the record at byte {first_line} is damaged; move")), "{problem}");
        assert_eq!(std::fs::read(&path).unwrap(), content, "nothing was changed");
    }
    std::fs::write(&path, "[worker]\n").unwrap();
    assert!(refused(&config).await.ends_with("it is no ledger; name another file"));
    let (missing, path) = with_file(&config, &folder.path().join("missing"));
    assert!(refused(&missing).await.contains(&format!("{} cannot be used: No such file", path.display())));
    lab.all_ran_once(1).await;
}

#[tokio::test]
async fn the_file_stays_within_twice_the_limits() {
    let mut lab = Lab::open(Kind::Embedded).await;
    let folder = tempfile::tempdir().unwrap();
    let (mut config, path) = with_file(&lab.desk.config, folder.path());
    config.worker.ledger.max_entries = 3;
    let worker = lab.worker(config.clone(), lab.steps()).await;
    let first_line = size(&path);
    let mut requests = Vec::new();
    let mut record = 0;
    for _ in 0..30 {
        requests.push(lab.ask("answer").await);
        lab.result().await;
        if requests.len() == 1 {
            record = size(&path) - first_line;
        }
        // Records differ by a few digits.
        assert!(size(&path) <= first_line + 6 * (record + 20), "{} bytes", size(&path));
    }
    worker.shutdown().await;
    let worker = lab.worker(config, lab.steps()).await;
    for (index, runs) in [(29, 1), (28, 1), (27, 1), (26, 2)] {
        lab.desk.send(&requests[index]).await;
        lab.result().await;
        assert_eq!(lab.runs_of(&requests[index]), runs, "step {index}");
    }
    worker.shutdown().await;
    lab.nothing_is_left().await;
}

#[tokio::test]
async fn a_file_that_cannot_be_written_harms_no_step_and_is_whole_again_once_it_can() {
    let mut lab = Lab::open(Kind::Embedded).await;
    let folder = tempfile::tempdir().unwrap();
    let (mut config, path) = with_file(&lab.desk.config, folder.path());
    config.worker.ledger.max_entries = 3;
    let worker = lab.worker(config.clone(), lab.steps()).await;
    std::fs::remove_dir_all(folder.path()).unwrap();
    let mut request = lab.ask("answer").await;
    lab.result().await;
    for _ in 0..30 {
        request = lab.ask("answer").await;
        lab.result().await;
    }
    lab.desk.send(&request).await;
    lab.result().await;

    std::fs::create_dir(folder.path()).unwrap();
    let mut asked = 31;
    while !path.exists() {
        request = lab.ask("answer").await;
        lab.result().await;
        asked += 1;
        // Further apart than the file is left alone, all in all, and not a thousand at once.
        tokio::task::yield_now().await;
    }
    worker.shutdown().await;
    // The next process knows what the last one kept.
    let worker = lab.worker(config, lab.steps()).await;
    lab.desk.send(&request).await;
    lab.result().await;
    worker.shutdown().await;
    lab.all_ran_once(asked).await;
}

fn with_file(config: &Config, folder: &Path) -> (Config, PathBuf) {
    let mut config = config.clone();
    let path = folder.join("ledger");
    config.worker.ledger.path = Some(path.clone());
    (config, path)
}

fn size(path: &Path) -> usize {
    usize::try_from(std::fs::metadata(path).unwrap().len()).unwrap()
}
