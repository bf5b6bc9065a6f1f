//! What passes while the fail-safe is enforced: Secure Shell for the last known administrators, what a host needs to be
//! one, and the rest as `fail` says.
#![forbid(unsafe_code)]

use anyhow::Result;
use portward::daemon::reconcile::Reconciler;
use portward::kernel::Netlink;
use portward::plan::fail_safe;
use portward::policy::{Fail, Mode};
use portward_integration_tests::listen::Responder;
use portward_integration_tests::probe::{one, one_denied};
use portward_integration_tests::{Host, HostSpec, Kind, Lab, Outcome, Probe};
use std::net::IpAddr;

const HOST: [&str; 2] = ["10.0.0.10", "fd00::10"];
const ADMIN: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
const STRANGER: [&str; 2] = ["203.0.113.9", "2001:db8:bad::9"];

/// Over both families, whether or not it is meant to pass.
fn assert_reaches(from: &Host, to: &Host, kind: Kind, expected: bool) {
    let pairs: [(IpAddr, IpAddr); 2] = [(from.ipv4(), to.ipv4()), (from.ipv6(), to.ipv6())];
    for (source, target) in pairs {
        let probe = Probe { from: source, to: target, kind };
        let outcome = if expected { one(from, probe) } else { one_denied(from, probe) };
        let wanted = if expected { Outcome::Passed } else { Outcome::Silent };
        assert_eq!(outcome, wanted, "{kind:?} from {} ({source}) to {target}", from.name());
    }
}

#[test]
fn administrators_can_log_in_and_the_rest_is_as_the_policy_said() -> Result<()> {
    let lab = Lab::new(&[
        HostSpec::new("console", &HOST),
        HostSpec::new("admin", &ADMIN),
        HostSpec::new("stranger", &STRANGER),
    ])?;
    let (host, admin, stranger) = (lab.host("console"), lab.host("admin"), lab.host("stranger"));
    let _servers = [Responder::start(host, [22, 443], [])?, Responder::start(stranger, [443], [])?];
    // An address and a network.
    let admins = ["192.0.2.10/32", "2001:db8::/64"].map(str::parse).into_iter().collect::<Result<Vec<_>, _>>()?;

    for (fail, mode, ssh_for_all, rest) in [
        (Fail::Closed, Mode::Enforce, false, false),
        (Fail::Open, Mode::Enforce, false, true),
        (Fail::Closed, Mode::Observe, true, true),
    ] {
        // One replaces the other, as at a boot that goes from bad to worse.
        let ruleset = fail_safe(&admins, fail, mode);
        host.run(|| -> Result<_> { Ok(Reconciler::new(Netlink::open()?).apply(&ruleset)?) })?;
        assert_reaches(admin, host, Kind::Tcp(22), true);
        assert_reaches(stranger, host, Kind::Tcp(22), ssh_for_all);
        assert_reaches(stranger, host, Kind::Tcp(443), rest);
        assert_reaches(admin, host, Kind::Tcp(443), rest);
        assert_reaches(stranger, host, Kind::Echo, rest);
        assert_reaches(host, stranger, Kind::Tcp(443), true);
        for address in [host.ipv4(), host.ipv6()] {
            let probe = Probe { from: address, to: address, kind: Kind::Tcp(443) };
            assert_eq!(one(host, probe), Outcome::Passed, "loopback {address}");
        }
    }
    Ok(())
}
