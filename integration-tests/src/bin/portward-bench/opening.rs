//! What it takes to open one dynamic port, beside a comparison of the whole ruleset and beside `nft`.

use crate::deployment;
use crate::namespace::Namespace;
use crate::report::{Samples, milliseconds, print_table, target};
use anyhow::{Context, Result, ensure};
use portward::daemon::reconcile::{Outcome, Reconciler};
use portward::kernel::{Error, Kernel, Netlink, Snapshot};
use portward::plan::{LocalScope, OpenPort, OpenPorts, open};
use portward::ruleset::diff::Change;
use portward::ruleset::{Protocol, Ruleset, TABLE, nft};
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The peers of the deployments.
const PEERS: [u32; 3] = [100, 10_000, 100_000];

/// How often each way is measured.
const ROUNDS: usize = 101;
const NFT_ROUNDS: usize = 15;

const SERVICE: &str = "broker";
const PORT: u16 = 40_000;

/// What portward may take beyond the kernel's part, in milliseconds.
const LIMIT: f64 = 0.1;

/// Measures and prints how long one port takes to open.
pub(crate) fn measure(folder: &Path) -> Result<()> {
    let heading = ["", "portward", "of it the commit", "beyond it", "compared as a whole", "nft add element", "target"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for count in PEERS {
        let mut policy = deployment::parse(&deployment::policy_text(&deployment::peers(count)))?;
        policy.dynamic.insert(SERVICE.to_owned(), deployment::service(SERVICE)?);
        let base = deployment::ruleset(&policy)?;
        let [part, whole] = Namespace::new()?.run(|| measure_portward(&base))?;
        let nft = measure_nft(&base, folder)?;
        let beyond = part.beyond.median();
        let goal = if count == 100_000 {
            target(&format!("<= {LIMIT} ms beyond the commit"), beyond <= LIMIT)
        } else {
            String::new()
        };
        rows.push(vec![
            format!("one port opened at {count} peers"),
            milliseconds(part.total.median()),
            milliseconds(part.commit.median()),
            milliseconds(beyond),
            milliseconds(whole.total.median()),
            milliseconds(nft.median()),
            goal,
        ]);
    }
    print_table("Opening one dynamic port, in milliseconds: open ports to acknowledgement", &rows);
    Ok(())
}

/// The kernel, with a clock at its commits.
struct Timed {
    kernel: Netlink,
    last_commit: Rc<Cell<Duration>>,
}

impl Kernel for Timed {
    fn dump(&mut self) -> Result<Snapshot, Error> {
        self.kernel.dump()
    }

    fn commit(&mut self, changes: &[Change], generation: u32) -> Result<u32, Error> {
        let start = Instant::now();
        let result = self.kernel.commit(changes, generation);
        self.last_commit.set(start.elapsed());
        result
    }

    fn replace(&mut self, desired: Option<&Ruleset>) -> Result<(), Error> {
        self.kernel.replace(desired)
    }

    fn generation(&mut self) -> Result<u32, Error> {
        self.kernel.generation()
    }
}

/// What opening took, and its parts.
#[derive(Default)]
struct Times {
    total: Samples,
    commit: Samples,
    beyond: Samples,
}

/// Opens the port and closes it, again and again, as a part of the ruleset and by comparing the whole. Closing is not
/// measured.
fn measure_portward(base: &Ruleset) -> Result<[Times; 2]> {
    type Way = fn(&mut Reconciler<Timed>, &Ruleset) -> Result<Outcome, portward::daemon::reconcile::Error>;
    let ways: [Way; 2] = [Reconciler::apply_part, Reconciler::verify];
    let last_commit = Rc::new(Cell::default());
    let mut reconciler = Reconciler::new(Timed { kernel: Netlink::open()?, last_commit: last_commit.clone() });
    let mut ruleset = base.clone();
    reconciler.apply(&ruleset)?;
    let port = OpenPort { protocol: Protocol::Tcp, port: PORT, scope: LocalScope::Any };
    let ports = OpenPorts::from([(SERVICE.to_owned(), [port].into())]);
    let mut times: [Times; 2] = Default::default();
    for _ in 0..ROUNDS {
        for (way, times) in ways.iter().zip(&mut times) {
            let start = Instant::now();
            open(&mut ruleset, &ports);
            let outcome = way(&mut reconciler, &ruleset)?;
            let total = start.elapsed();
            ensure!(outcome.count == 1, "one port is one change, and not {}", outcome.changes);
            times.total.push(total);
            times.commit.push(last_commit.get());
            times.beyond.push(total.saturating_sub(last_commit.get()));
            open(&mut ruleset, &OpenPorts::new());
            reconciler.apply_part(&ruleset)?;
        }
    }
    Ok(times)
}

fn measure_nft(base: &Ruleset, folder: &Path) -> Result<Samples> {
    let script = folder.join("open.nft");
    let element =
        |verb: &str, verdict: &str| format!("{verb} element inet {TABLE} dynamic_tcp {{ {PORT}{verdict} }}\n");
    let namespace = Namespace::new()?;
    namespace.nft(&nft::render(base))?;
    let mut samples = Samples::default();
    for _ in 0..NFT_ROUNDS {
        fs::write(&script, element("add", &format!(" : jump dyn_{SERVICE}")))?;
        samples.push(namespace.run(|| {
            let start = Instant::now();
            let status = Command::new("nft").arg("-f").arg(&script).status().context("cannot run nft")?;
            ensure!(status.success(), "nft does not open the port");
            Ok(start.elapsed())
        })?);
        namespace.nft(&element("delete", ""))?;
    }
    Ok(samples)
}
