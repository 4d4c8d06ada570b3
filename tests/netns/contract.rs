//! What scripts rely on of `mesh-ctl`: answers as its schema says, exit statuses, widths, colours, silence.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests run in real time and fail by panic"
)]

use lab::world::wait_until;
use lab::{Lab, Outcome, Plan};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

/// A node's name is longer than the name of a namespace may be.
const LONG: &str = "hypervisor-with-a-long-name-in-rack-17-of-the-second-hall";

const NETWORK: &str = "customers-of-the-second-hall";

/// Two nodes that meet over IPv6, the second with a long name, one network with a long name, one beside it.
fn long_names() -> Lab {
    let plan = Plan::standard("", 2).underlay6().each_net(|_, net| net.name = NETWORK.into());
    let blue = lab::Net::new("blue", "vmnet2").subnet("172.16.9.1/24", "172.16.9.0/24", "172.16.9.0/24");
    let plan = plan.with("ph1", |h| h.net(blue)).with("ph2", |mut h| {
        h.offers[0].network = NETWORK.into();
        h
    });
    let mut lab = Lab::build(plan).unwrap();
    let ctl = lab::node::binary("mesh-ctl").unwrap();
    let ca = lab.dir().join("ca");
    let issued = lab
        .sh(
            "ph2",
            &format!(
                "{} ca issue {LONG} --prefix {NETWORK}=10.77.2.0/24 {NETWORK}=fd00:77:2::/64 \
                 --announce {NETWORK}=203.0.113.0/24 --egress --dir {1} && cd {1} && cp {LONG}.pem {2} && cp {LONG}.key {3}",
                ctl.display(),
                ca.display(),
                lab.file("ph2", "node.pem").display(),
                lab.file("ph2", "node.key").display(),
            ),
        )
        .unwrap();
    assert!(issued.ok(), "{}", issued.text());
    let config = lab.file("ph1", "node.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("egress = [\"ph2\"]", &format!("egress = [\"{LONG}\"]"))).unwrap();
    lab.start_node("ph1").unwrap();
    lab.start_node("ph2").unwrap();
    let both = wait_until(SOON, || lab.peers_up("ph1") == [LONG] && lab.peers_up("ph2") == ["ph1"]);
    assert!(both, "{}", lab.log("ph1"));
    lab
}

/// Objects may have no field that the schema does not name.
fn strict(part: &mut Value) {
    match part {
        Value::Object(fields) => {
            if fields.contains_key("properties") {
                fields.insert("additionalProperties".into(), json!(false));
            }
            fields.values_mut().for_each(strict);
        }
        Value::Array(items) => items.iter_mut().for_each(strict),
        _ => {}
    }
}

/// Compares an answer with the schema of a command.
fn check(schemas: &Value, command: &str, answer: &Outcome) {
    let mut schema = schemas[command].clone();
    assert!(jsonschema::draft202012::meta::is_valid(&schema), "{command}: {schema:#}");
    strict(&mut schema);
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let found = answer.json();
    assert_eq!(found["schema"], 1, "{command}: {}", answer.text());
    let wrong: Vec<String> =
        validator.iter_errors(&found).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(wrong.is_empty(), "{command}: {wrong:?}\n{found:#}");
}

#[test]
fn every_answer_is_as_the_published_schema_says() {
    let lab = long_names();
    let ctl = |args: &[&str]| {
        // ph2 is the one that offers egress
        let host = if matches!(args, ["egress", "drain" | "resume", ..]) { "ph2" } else { "ph1" };
        lab.ctl(host, &[&["--json"], args].concat()).unwrap()
    };
    let schemas = ctl(&["schema"]).json();
    let ca = lab.dir().join("new-ca").to_string_lossy().into_owned();
    let (own, pages) = (format!("{ca}/ca.pem"), format!("{ca}/man"));
    let several = format!("{ca}/several.pem");
    let commands: &[(&str, &[&str], i32)] = &[
        ("ca init", &["--dir", &ca], 0),
        ("ca issue", &["ph9", "--prefix", "10.77.9.0/24", "blue=fd09::/64", "--dir", &ca], 0),
        ("ca show", &[&format!("{ca}/ph9.pem")], 0),
        ("ca show", &[&own], 0),
        ("ca show", &[&several], 0),
        ("status", &[], 0),
        ("status", &["--verbose"], 0),
        ("peers", &[], 0),
        ("peer show", &[LONG], 0),
        ("peer add", &["[2001:db8:100::77]:4650"], 0),
        ("peer show", &["[2001:db8:100::77]:4650"], 0),
        ("peers", &[], 0),
        ("peer remove", &["[2001:db8:100::77]:4650"], 0),
        ("networks", &[], 0),
        ("routes", &[], 0),
        ("routes", &["--network", "blue"], 0),
        ("route get", &["10.77.2.5"], 0),
        ("route get", &["9.9.9.9"], 1),
        ("egress", &[], 0),
        ("egress list", &["--network", NETWORK], 0),
        ("egress use", &[LONG, "--network", NETWORK], 0),
        ("egress use", &["auto"], 0),
        ("egress drain", &["--deadline", "1s"], 0),
        ("egress resume", &[], 0),
        ("trace", &["192.168.100.10", "10.77.2.10"], 0),
        ("trace", &["fd64::10", "fd00:77:2::10"], 0),
        ("trace", &["192.168.100.10", "10.250.0.1"], 1),
        ("ping", &[LONG, "--count", "1", "--sweep"], 0),
        ("ping", &["10.77.2.10", "-c", "1"], 0),
        ("ping", &["9.9.9.9"], 1),
        ("reload", &[], 0),
        ("log-level", &[], 0),
        ("log-level", &["info"], 0),
        ("completions", &["bash"], 0),
        ("man", &[&pages], 0),
    ];
    let mut tried: BTreeSet<&str> = ["schema", "problem"].into();
    for (command, args, status) in commands {
        let words: Vec<&str> = command.split(' ').chain(args.iter().copied()).collect();
        if words.last() == Some(&several.as_str()) {
            let both = std::fs::read_to_string(&own).unwrap()
                + &std::fs::read_to_string(format!("{ca}/ph9.pem")).unwrap();
            std::fs::write(&several, both).unwrap();
        }
        let answer = ctl(&words);
        assert_eq!(answer.code, Some(*status), "{words:?}: {}", answer.text());
        check(&schemas, command, &answer);
        tried.insert(command);
    }
    // a stream: each line is an answer
    let program = lab::node::binary("mesh-ctl").unwrap();
    let socket = lab.file("ph1", "node.sock");
    let stream = format!("timeout 2 {} --socket {} monitor | head -n 1", program.display(), socket.display());
    check(&schemas, "monitor", &lab.sh("ph1", &stream).unwrap());
    tried.insert("monitor");
    let published: BTreeSet<&str> = schemas.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(tried, published, "each command's real answer is compared");

    for refused in [
        &["peer", "show", "nobody-of-this-name"] as &[&str],
        &["peer", "add", "no-port"],
        &["peer", "remove", "nobody-of-this-name"],
        &["routes", "--network", "green"],
        &["trace", "198.18.7.7", "10.77.2.10"],
        &["ca", "show", "/nonexistent"],
        &["ca", "init", "--dir", &ca],
        &["schema", "no", "such"],
    ] {
        let answer = ctl(refused);
        assert_eq!(answer.code, Some(1), "{refused:?}: {}", answer.text());
        check(&schemas, "problem", &answer);
        let title = answer.json()["title"].as_str().unwrap().to_owned();
        assert!(answer.stderr.contains(&title), "told to people too: {}", answer.stderr);
    }
    let unreachable = ctl(&["status", "--socket", "/nonexistent/node.sock"]);
    assert_eq!(unreachable.code, Some(3));
    check(&schemas, "problem", &unreachable);
}

#[test]
fn the_completion_script_is_one_that_bash_takes_and_the_manual_pages_have_their_sections() {
    let ctl = lab::node::binary("mesh-ctl").unwrap().to_string_lossy().into_owned();
    let script = "set -e; source <(\"$0\" completions bash)
        function=$(complete -p mesh-ctl | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        COMP_WORDS=(mesh-ctl pe) COMP_CWORD=1; \"$function\" mesh-ctl pe mesh-ctl; echo \"${COMPREPLY[@]}\"";
    let found = lab::command::run(None, &["bash", "-c", script, &ctl]).unwrap();
    assert!(found.ok() && found.stdout.split_whitespace().any(|w| w == "peers"), "{}", found.text());
    let dir = tempfile::tempdir().unwrap();
    let written = lab::command::run(None, &[&ctl, "man", &dir.path().to_string_lossy()]).unwrap();
    assert!(written.ok(), "{}", written.text());
    let page = std::fs::read_to_string(dir.path().join("mesh-ctl-ca-issue.1")).unwrap();
    for part in [".TH", ".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS", "prefix", ".SH EXAMPLES"] {
        assert!(page.contains(part), "{part}: {page}");
    }
}

#[test]
fn exit_statuses_tell_fine_degraded_usage_and_unreachable_apart() {
    let mut lab = Lab::start(Plan::standard("", 2)).unwrap();
    let fine = wait_until(SOON, || lab.ctl("ph1", &["status"]).is_ok_and(|s| s.code == Some(0)));
    assert!(fine, "{}", lab.ctl("ph1", &["status"]).unwrap().text());
    lab.kill_node("ph2").unwrap();
    let degraded = wait_until(SOON, || lab.ctl("ph1", &["-q", "status"]).is_ok_and(|s| s.code == Some(1)));
    assert!(degraded, "{}", lab.ctl("ph1", &["status"]).unwrap().text());
    for (args, status) in [
        (&["peers"] as &[&str], 0),
        (&["routes", "--network", "default"], 0),
        (&["route", "get", "9.9.9.9"], 1),
        (&["peer", "show", "nobody"], 1),
        (&["trace", "192.168.100.10", "10.77.2.10"], 1),
        (&["nonsense"], 2),
        (&["status", "--nonsense"], 2),
        (&["route", "get", "ten"], 2),
        (&["routes", "--network", "Not A Name"], 2),
        (&["completions", "csh"], 2),
        (&["peers", "--socket", "/nonexistent/node.sock"], 3),
    ] {
        let answer = lab.ctl("ph1", args).unwrap();
        assert_eq!(answer.code, Some(status), "{args:?}: {}", answer.text());
        let told = answer.stdout.is_empty() && !answer.stderr.is_empty();
        assert!(status < 2 || told, "{args:?}: {}", answer.text());
    }
    // -q: the exit status alone, and errors
    for args in [&["-q", "status"] as &[&str], &["peers", "-q"], &["route", "get", "9.9.9.9", "--quiet"]] {
        assert_eq!(lab.ctl("ph1", args).unwrap().text(), "", "{args:?}");
    }
    let refused = lab.ctl("ph1", &["-q", "peer", "show", "nobody"]).unwrap();
    assert!(refused.stdout.is_empty() && refused.stderr.contains("nobody"), "{}", refused.text());
    lab.kill_node("ph1").unwrap();
    let dead = lab.ctl("ph1", &["status"]).unwrap();
    assert_eq!(dead.code, Some(3), "{}", dead.text());
}

#[test]
fn tables_fit_a_hundred_columns_with_long_names_and_ipv6_endpoints() {
    let lab = long_names();
    let pem = lab.file("ph2", "node.pem").to_string_lossy().into_owned();
    let added = lab.ctl("ph1", &["peer", "add", "[2001:db8:100:1234:5678:9abc:def0:77]:4650"]).unwrap();
    assert!(added.ok(), "{}", added.text());
    for args in [
        &["status"] as &[&str],
        &["peers"],
        &["peer", "show", LONG],
        &["networks"],
        &["routes"],
        &["route", "get", "fd00:77:2::10"],
        &["egress"],
        &["ping", LONG, "-c", "1"],
        &["ca", "show", &pem],
        &["--help"],
        &["ca", "issue", "--help"],
    ] {
        let answer = lab.ctl("ph1", args).unwrap();
        assert!(answer.stdout.lines().count() > 1, "{args:?}: {}", answer.text());
        let wide: Vec<&str> = answer.stdout.lines().filter(|l| l.chars().count() > 100).collect();
        assert!(wide.is_empty(), "{args:?}: {wide:#?}\n{}", answer.stdout);
    }
    // folded, not cut: the parts of a row's first column are the whole name
    let peers = lab.ctl("ph1", &["peers"]).unwrap().stdout;
    let width = peers.find("STATE").unwrap();
    let names: String = peers.lines().skip(1).map(|l| l.get(..width).unwrap_or(l).trim()).collect();
    assert!(names.contains(LONG), "{peers}");
    // a trace keeps one line a hop, whatever its width
    let trace = lab.ctl("ph1", &["trace", "fd64::10", "fd00:77:2::10"]).unwrap().stdout;
    let hops = lab.ctl("ph1", &["--json", "trace", "fd64::10", "fd00:77:2::10"]).unwrap().json();
    assert_eq!(trace.lines().count(), hops["hops"].as_array().unwrap().len() + 1, "{trace}");
}

#[test]
fn colours_are_for_terminals_that_want_them_and_never_the_only_sign() {
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    let program = lab::node::binary("mesh-ctl").unwrap();
    let socket = lab.file("ph1", "node.sock");
    // `script` gives the command a terminal
    let terminal = |before: &str, args: &str| {
        let line = format!("{} --socket {} {args}", program.display(), socket.display());
        lab.sh("ph1", &format!("unset NO_COLOR; export TERM=xterm {before}; script -qec '{line}' /dev/null"))
            .unwrap()
            .stdout
    };
    let fine = wait_until(SOON, || lab.ctl("ph1", &["status"]).is_ok_and(|s| s.ok()));
    assert!(fine, "{}", lab.ctl("ph1", &["status"]).unwrap().text());
    let coloured = terminal("", "status");
    assert!(coloured.contains("\x1b[32mok\x1b[0m"), "{coloured:?}");
    for plain in
        [terminal("NO_COLOR=1", "status"), terminal("", "--no-color status"), terminal("", "status --json")]
    {
        assert!(!plain.contains('\x1b') && plain.contains("ok"), "{plain:?}");
    }
    assert!(terminal("NO_COLOR=", "status").contains('\x1b'), "an empty NO_COLOR is none");
    // the parser's own messages
    assert!(terminal("", "nonsense").contains('\x1b'));
    assert!(!terminal("NO_COLOR=1", "nonsense").contains('\x1b'));
    assert!(!terminal("", "--no-color nonsense").contains('\x1b'));
    // no terminal, no colours; and the words without them say the state
    let piped =
        lab.sh("ph1", &format!("{} --socket {} status", program.display(), socket.display())).unwrap();
    assert!(piped.stdout.starts_with("ok: node ph1"), "{}", piped.text());
}

#[test]
fn a_mistyped_name_is_answered_with_the_one_meant() {
    let lab = Lab::start(Plan::standard("", 2)).unwrap();
    for (args, meant) in [
        (&["peer", "show", "ph22"] as &[&str], "did you mean ph2?"),
        (&["peer", "remove", "ph22"], "did you mean ph2?"),
        (&["routes", "--network", "defualt"], "did you mean default?"),
        (&["route", "get", "10.77.2.1", "--network", "defualt"], "did you mean default?"),
        (&["ping", "10.77.2.10", "--network", "defualt"], "did you mean default?"),
        (&["egress", "--network", "defaul"], "did you mean default?"),
        (&["trace", "192.168.100.10", "10.77.2.10", "--network", "defualt"], "did you mean default?"),
        (&["statsu"], "'status'"),
        (&["peer", "show", "something-else"], "`mesh-ctl peers` lists them"),
    ] {
        let answer = lab.ctl("ph1", args).unwrap();
        assert!(!answer.ok() && answer.stderr.contains(meant), "{args:?}: {}", answer.text());
    }
}
