//! What `deploy/` offers: a unit that systemd understands, and a node that works under its restrictions.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::command::{must, run, signal};
use lab::world::{WEB4, wait_until};
use lab::{Lab, Plan};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

/// CAP_NET_ADMIN of capabilities(7), as /proc shows a set with it alone.
const NET_ADMIN_ALONE: &str = "0000000000001000";

fn deployed(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The unit, with the programs that were just built.
fn unit() -> String {
    let program = lab::node::binary("mesh-node").unwrap();
    let text = deployed("mesh-node.service");
    assert!(text.contains("ExecStart=/usr/local/bin/mesh-node run"));
    text.replace("/usr/local/bin/mesh-node", &program.to_string_lossy())
}

fn there(program: &str) -> bool {
    let found = run(None, &["sh", "-c", "command -v \"$0\"", program]).is_ok_and(|o| o.ok());
    if !found {
        println!("skipped: {program} is not on this machine");
    }
    found
}

#[test]
fn systemd_understands_every_line_of_the_unit() {
    if !there("systemd-analyze") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let verify = |text: &str| {
        let file = dir.path().join("mesh-node.service");
        std::fs::write(&file, text).unwrap();
        run(None, &["systemd-analyze", "verify", "--man=no", &file.to_string_lossy()]).unwrap()
    };
    let found = verify(&unit());
    assert!(found.ok() && !found.text().contains("mesh-node.service"), "{}", found.text());
    // the check would see something
    let wrong = verify(&unit().replace("ProtectClock=yes", "ProtectClok=yes"));
    assert!(wrong.text().contains("ProtectClok"), "{}", wrong.text());
    // as systemd rates it, of 10; a node without a sandbox has more than 9
    std::fs::write(dir.path().join("mesh-node.service"), unit()).unwrap();
    let file = dir.path().join("mesh-node.service").to_string_lossy().into_owned();
    let rated =
        run(None, &["systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold=25", &file]);
    let rated = rated.unwrap();
    assert!(rated.ok(), "{}", rated.text());
}

#[test]
fn the_user_is_made_by_sysusers() {
    if !there("systemd-sysusers") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    for dir in ["etc", "usr/lib/sysusers.d"] {
        std::fs::create_dir_all(root.path().join(dir)).unwrap();
    }
    let file = root.path().join("usr/lib/sysusers.d/mesh.conf");
    std::fs::write(&file, deployed("mesh.sysusers.conf")).unwrap();
    must(None, &["systemd-sysusers", &format!("--root={}", root.path().display())]).unwrap();
    for file in ["etc/passwd", "etc/group"] {
        let text = std::fs::read_to_string(root.path().join(file)).unwrap();
        assert!(text.lines().any(|l| l.starts_with("mesh:")), "{file}: {text}");
    }
}

/// What a process may do, of /proc/PID/status.
fn status_of(pid: u32, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or("gone").trim().to_owned()
}

/// The group that the node gives its socket to, where this machine has one; else a number that nobody has.
fn mesh_group() -> String {
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let found = groups.lines().find_map(|l| l.strip_prefix("mesh:")?.split(':').nth(1).map(str::to_owned));
    found.unwrap_or_else(|| "64650".into())
}

/// Starts a host's node as the unit does, by the means there are without systemd: an own user with CAP_NET_ADMIN alone and no
/// way to more, a read-only file system with one directory to write, tunables read-only but for the network's.
fn start_sandboxed(lab: &mut Lab, host: &str) -> u32 {
    let dir = lab.file(host, "");
    let program = dir.join("mesh-node");
    std::fs::copy(lab::node::binary("mesh-node").unwrap(), &program).unwrap();
    let (user, group) = ("64650", mesh_group());
    must(None, &["chown", "-R", &format!("{user}:{group}"), &dir.to_string_lossy()]).unwrap();
    let dir = dir.to_string_lossy().into_owned();
    let script = format!(
        "set -e\n\
         mount -t tmpfs -o mode=0755 none /dev/net\n\
         mknod -m 0666 /dev/net/tun c 10 200\n\
         mount --bind {dir} {dir}\n\
         mount --bind /proc/sys /proc/sys\n\
         mount --bind /proc/sys/net /proc/sys/net\n\
         mount -o remount,bind,ro /proc/sys\n\
         mount -o remount,bind,ro /\n\
         exec setpriv --reuid {user} --regid {group} --clear-groups --no-new-privs \
         --inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin --bounding-set=-all,+net_admin \
         {program} run --config {dir}/node.toml",
        program = program.display(),
    );
    let pid = lab.spawn(host, &["unshare", "--mount", "sh", "-c", &script]).unwrap();
    let answers = wait_until(SOON, || lab.ctl(host, &["peers"]).is_ok_and(|o| o.ok()));
    assert!(answers, "{}", lab.log(host));
    pid
}

#[test]
fn a_node_works_as_an_own_user_with_one_capability_and_a_read_only_file_system() {
    let mut lab = Lab::build(Plan::standard("", 2)).unwrap();
    lab.start_node("ph1").unwrap();
    let pid = start_sandboxed(&mut lab, "ph2");
    assert!(status_of(pid, "Uid").starts_with("64650"), "{}", status_of(pid, "Uid"));
    for set in ["CapEff", "CapPrm", "CapAmb", "CapBnd"] {
        assert_eq!(status_of(pid, set), NET_ADMIN_ALONE, "{set}");
    }
    assert_eq!(status_of(pid, "NoNewPrivs"), "1");
    let program = PathBuf::from(format!("/proc/{pid}/exe")).read_link().unwrap();
    assert!(program.ends_with("mesh-node"), "{}", program.display());

    let up = wait_until(SOON, || lab.peers_up("ph1") == ["ph2"] && lab.peers_up("ph2") == ["ph1"]);
    assert!(up, "{}", lab.log("ph2"));
    // rules, routes, sysctls and the egress's source address are all there, or this would not pass
    assert!(lab.ping_within(SOON, "vm1", "10.77.2.10"), "{}", lab.log("ph2"));
    assert!(lab.ping_within(SOON, "vm2", "10.77.1.10"));
    assert!(lab.ping_within(SOON, "vm1", "fd00:77:2::10"));
    let left = wait_until(SOON, || lab.web("vm1", WEB4, None).as_deref() == Some("198.51.100.12"));
    assert!(left, "{}", lab.log("ph2"));
    let status = lab.ctl("ph2", &["status"]).unwrap();
    assert!(status.ok(), "{}", status.text());
    let socket =
        must(None, &["stat", "-c", "%a %u", &lab.file("ph2", "node.sock").to_string_lossy()]).unwrap();
    assert_eq!(socket.trim(), "660 64650");
    // a change by root, kept on disk by the node's user
    let added = lab.ctl("ph2", &["peer", "add", "198.51.100.77:4650"]).unwrap();
    assert!(added.ok(), "{}", added.text());

    signal(pid, "TERM").unwrap();
    // the lab has not waited for it: ended, it is a zombie
    let ended = wait_until(SOON, || !status_of(pid, "State").starts_with(['R', 'S', 'D']));
    assert!(ended, "{}", lab.log("ph2"));
    let left = lab.sh("ph2", "nft list tables; ip link; ip rule; ip route show table all").unwrap().stdout;
    for ours in ["inet mesh", "mesh-default", "171", "proto mesh"] {
        assert!(!left.contains(ours), "{ours} is left: {left}");
    }
    let forwarding = lab.sh("ph2", "sysctl -n net.ipv4.conf.vmnet1.forwarding").unwrap().stdout;
    assert_eq!(forwarding.trim(), "0", "sysctls are as before");
    let log = lab.log("ph2");
    assert!(!log.contains("\"level\":\"ERROR\"") && !log.contains("ermission"), "{log}");
}

/// The first process of the namespaces that `unshare --fork` made.
fn first_process(unshare: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Where systemd itself can be had: the unit as it is, started by it. Not the machine's own systemd, which would lead a
/// unit out of the lab, but one over a throw-away copy of the machine's files in the lab's namespaces.
#[test]
fn systemd_starts_and_stops_the_unit_as_it_is_deployed() {
    if !Path::new("/lib/systemd/systemd").exists() || !there("systemctl") {
        println!("skipped: no systemd on this machine");
        return;
    }
    let mut lab = Lab::build(Plan::standard("", 2)).unwrap();
    lab.start_node("ph1").unwrap();
    // the paths of the unit, not of the lab
    let config = lab.config("ph2").unwrap();
    let ours = ["ca = ", "certificate = ", "key = ", "state_dir = ", "control_socket = "];
    let lines = config.lines().filter(|line| !ours.iter().any(|key| line.starts_with(key)));
    std::fs::write(lab.file("ph2", "node.toml"), lines.collect::<Vec<_>>().join("\n")).unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let script = text(&here.join("netns/boot_systemd.sh"));
    let deploy = text(&here.join("../deploy"));
    let programs = text(lab::node::binary("mesh-node").unwrap().parent().unwrap());
    let (files, at) = (text(&lab.file("ph2", "")), lab.file("ph2", "root"));
    std::fs::create_dir(&at).unwrap();
    let namespaces = ["unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child"];
    let boot = ["sh", &script, &deploy, &programs, &files, &text(&at)];
    // where the machine runs systemd, a part of its cgroups is ours to manage
    let scope: &[&str] = if Path::new("/run/systemd/system").exists() {
        &["systemd-run", "--quiet", "--scope", "-p", "Delegate=yes"]
    } else {
        &[]
    };
    let outer = lab.spawn("ph2", &[scope, &namespaces, &boot].concat()).unwrap();
    let inside = |args: &[&str]| {
        let pid = first_process(outer).unwrap_or_default().to_string();
        let enter = ["nsenter", "-t", &pid, "-m", "-p", "-u", "-i", "-C", "-n", "--"];
        run(None, &[&enter, args].concat()).unwrap()
    };
    let booted = wait_until(SOON, || inside(&["systemctl", "is-system-running"]).stdout.contains("running"));
    assert!(booted, "{}", lab.log("ph2"));

    let started = inside(&["systemctl", "start", "mesh-node"]);
    let told = || inside(&["systemctl", "status", "--no-pager", "-l", "mesh-node"]).text() + &lab.log("ph2");
    assert!(started.ok(), "{}{}", started.text(), told());
    let up = wait_until(SOON, || lab.peers_up("ph1") == ["ph2"]);
    assert!(up, "{}", told());
    assert!(lab.ping_within(SOON, "vm1", "10.77.2.10"), "{}", told());
    let left = wait_until(SOON, || lab.web("vm1", WEB4, None).as_deref() == Some("198.51.100.12"));
    assert!(left, "{}", told());
    let status = inside(&["mesh-ctl", "status"]);
    assert!(status.ok(), "{}", status.text());

    // what the sandbox is there for
    let pid = inside(&["systemctl", "show", "-p", "MainPID", "--value", "mesh-node"]).stdout;
    let of_node = |key: &str| {
        let text = inside(&["cat", &format!("/proc/{}/status", pid.trim())]).stdout;
        text.lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix(':').map(|v| v.trim().to_owned()))
            .unwrap()
    };
    for set in ["CapEff", "CapPrm", "CapAmb", "CapBnd"] {
        assert_eq!(of_node(set), NET_ADMIN_ALONE, "{set}");
    }
    assert_eq!((of_node("NoNewPrivs").as_str(), of_node("Seccomp").as_str()), ("1", "2"));
    let ask = |user: &str| {
        let as_user = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "mesh-ctl", "peers"];
        inside(&as_user).code
    };
    assert_eq!((ask("mesh"), ask("65534")), (Some(0), Some(3)), "members of the group may ask, others not");

    let stopped = inside(&["systemctl", "stop", "mesh-node"]);
    assert!(stopped.ok(), "{}", stopped.text());
    let result = inside(&["systemctl", "show", "-p", "Result", "--value", "mesh-node"]).stdout;
    assert_eq!(result.trim(), "success", "{}", told());
    let left = lab.sh("ph2", "nft list tables; ip link").unwrap().stdout;
    assert!(!left.contains("inet mesh") && !left.contains("mesh-default"), "{left}");
}
