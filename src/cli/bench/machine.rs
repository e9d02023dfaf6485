//! Who used the processors, from `/proc`. Where there is none, the figures are missing.

use std::fs;
use std::path::Path;

/// Kernel ticks per second: what Linux has shown to programs for decades.
const TICKS: f64 = 100.0;

/// A run is not counted when processes that have nothing to do with it used more than this many cores.
pub(super) const DISTURBED: f64 = 0.3;

/// Processor time used so far, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    /// By everybody.
    machine: f64,
    /// By this process, its ended children, and those it was told of.
    bench: f64,
    /// By the broker, where it runs here.
    broker: f64,
}

/// What to look at beside this process.
#[derive(Debug, Clone, Default)]
pub(super) struct Machine {
    broker: Option<u32>,
}

impl Machine {
    /// A machine whose broker listens on this local port, or elsewhere.
    pub(super) fn new(broker_port: Option<u16>) -> Self {
        Self { broker: broker_port.and_then(listener) }
    }

    pub(super) fn sees_broker(&self) -> bool {
        self.broker.is_some()
    }

    /// The time used so far; `running` are this process's children that matter.
    pub(super) fn used(&self, running: &[u32]) -> Used {
        let own = stat("/proc/self/stat").map_or(0.0, |stat| stat[0] + stat[1] + stat[2] + stat[3]);
        Used {
            machine: machine().unwrap_or(0.0),
            bench: own + running.iter().map(|pid| cpu_of(*pid)).sum::<f64>(),
            broker: self.broker.map_or(0.0, cpu_of),
        }
    }
}

impl Used {
    pub(super) fn broker_since(&self, before: &Self) -> f64 {
        self.broker - before.broker
    }

    /// Cores that others used in `seconds`.
    pub(super) fn others_since(&self, before: &Self, seconds: f64) -> f64 {
        let of = |used: &Self| used.machine - used.bench - used.broker;
        ((of(self) - of(before)) / seconds).max(0.0)
    }
}

/// Processor time this process has used, in seconds.
pub(crate) fn own_cpu() -> f64 {
    stat("/proc/self/stat").map_or(0.0, |stat| stat[0] + stat[1])
}

/// Processor time a process has used, in seconds; nothing for one that has ended.
pub(super) fn cpu_of(pid: u32) -> f64 {
    stat(&format!("/proc/{pid}/stat")).map_or(0.0, |stat| stat[0] + stat[1])
}

/// The most memory this process ever had in use, in megabytes.
pub(super) fn peak_memory() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}

/// User and system time of a process, and those of its ended children.
fn stat(path: &str) -> Option<[f64; 4]> {
    let text = fs::read_to_string(path).ok()?;
    // The name, in brackets, may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let seconds = |index: usize| Some(fields.get(index)?.parse::<f64>().ok()? / TICKS);
    Some([seconds(11)?, seconds(12)?, seconds(13)?, seconds(14)?])
}

fn machine() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<f64> =
        text.lines().next()?.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // Not idle (3), not waiting for a disk (4), and no guests (8, 9): user time has them.
    Some([0, 1, 2, 5, 6, 7].iter().filter_map(|field| fields.get(*field)).sum::<f64>() / TICKS)
}

/// The process that listens on a local port.
fn listener(port: u16) -> Option<u32> {
    let wanted = format!(":{port:04X}");
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields.get(1)?.ends_with(&wanted) && *fields.get(3)? == "0A";
            listens.then(|| format!("socket:[{}]", fields.get(9).copied().unwrap_or_default()))
        })
        .collect();
    let processes =
        fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes
        .into_iter()
        .find(|pid: &u32| holds(Path::new("/proc").join(pid.to_string()).as_path(), &sockets))
}

fn holds(process: &Path, sockets: &[String]) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else { return false };
    files
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
}

/// What this machine is, in a line.
pub(super) fn description() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let system = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores, {}, Linux {}", model.unwrap_or("processor unknown"), system.trim())
}
