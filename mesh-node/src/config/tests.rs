use proptest::prelude::*;

use super::*;

const NET: &str = "[[network]]\nname = \"a\"\ninterface = \"br0\"\nsubnet = \"10.0.0.0/24\"\n";

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(text, Path::new("node.toml"))
}

#[test]
fn the_deployed_example_parses() {
    let config = parse(include_str!("../../../deploy/mesh-node.toml")).expect("parses");
    assert_eq!((config.networks.len(), config.peers.len()), (1, 1));
    assert_eq!(config.node.expose, [Expose::Icmp]);
}

#[test]
fn endpoints_are_host_and_port() {
    for good in ["198.51.100.1:4650", "[2001:db8::1]:4650", "[fe80::1%2]:4650", "ph1.example.net:4650"] {
        assert_eq!(endpoint(good), Ok(good));
    }
    for bad in
        ["", "ph1", "ph1:", "ph1:0", "2001:db8::1:4650", "a b:1", "ph1:70000", "[x]:1", "[fe80::1%2]:0"]
    {
        assert!(endpoint(bad).is_err(), "{bad}");
    }
}

#[test]
fn each_bad_file_names_its_line_and_what_is_wrong() {
    for (text, line, words) in [
        ("[node]\nlisen = \"x\"", 2, "did you mean listen?"),
        ("[node]\nlisten = \"0.0.0.0:0\"", 2, "port 0"),
        ("[node]\nkeepalive = \"1h\"", 2, "not a duration"),
        ("[node]\nmtu = 100", 2, "576 to 65000"),
        ("[node]\nworkers = 0", 2, "give 1 to 16"),
        ("[node]\nworkers = 17", 2, "give 1 to 16"),
        ("[node]\nlisten = \"0.0.0.0:65534\"\nworkers = 3", 3, "from that of listen on"),
        ("[node]\noffloads = [\"lro\"]", 2, "no offload"),
        ("[node]\noffloads = [\"tso\", \"gso\"]", 2, "need \"csum\""),
        ("[node]\ntransport = \"tcp\"", 2, "is no transport"),
        ("[node]\nlane_packets = 10", 2, "1000 to 4194304"),
        ("[[peer]]\nendpoint = \"x\"", 2, "HOST:PORT"),
        ("[[network]]\nname = \"a\"", 1, "interface: missing"),
        ("[[network]]\negress_preempt = true", 2, "after how long"),
        ("[[network]]\negress_preempt = \"2h\"", 2, "not a duration"),
        ("[[network]]\negress_preempt = \"61m\"", 2, "1s to 3600s"),
        ("[[network]]\negress_fallback = \"auto\"", 2, "write \"none\" or \"local\""),
        ("[[network]]\negress_balance = \"yes\"", 2, "neither true nor false"),
        ("[[egress]]\nnetwork = \"b\"\ninterface = \"e\"", 2, "no such [[network]]"),
    ] {
        let errors = parse(text).expect_err(text);
        assert!(errors.0.iter().any(|e| e.line == line && e.text.contains(words)), "{text}: {errors}");
    }
}

#[test]
fn workers_are_as_many_as_there_are_ports() {
    assert_eq!(parse("").expect("parses").node.workers, 1);
    assert_eq!(parse("[node]\nworkers = 16").expect("parses").node.workers, 16);
    let text = "[node]\nlisten = \"0.0.0.0:65534\"\nworkers = 2";
    assert_eq!(parse(text).expect("the last port").node.workers, 2);
}

#[test]
fn all_errors_of_a_file_come_at_once_by_line() {
    let errors = parse("[node]\nmtu = 1\nlisten = \"x\"\n[foo]\n").expect_err("bad");
    assert_eq!(errors.0.iter().map(|e| e.line).collect::<Vec<_>>(), [2, 3, 4]);
}

#[test]
fn a_bridge_without_an_address_is_refused_with_the_remedy() {
    let config = parse(NET).expect("parses");
    let errors = config.networks[0].resolve(&[]).expect_err("no address");
    assert!(errors[0].contains("ip addr add ADDRESS/24 dev br0"));
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "[\\[\\]a-z=\"\n 0-9./{},]{0,200}|\\PC*") {
        let _ = parse(&text);
    }
}

#[test]
fn an_error_between_tables_names_the_line_of_its_key() {
    let text = "[[network]]\nname = \"a\"\ninterface = \"br0\"\n\n[[network]]\n# a second one\ninterface = \"br1\"\nname = \"a\"\n";
    let errors = Config::parse(text, Path::new("node.toml")).unwrap_err();
    assert_eq!(errors.0.iter().map(|e| e.line).collect::<Vec<_>>(), [8], "{errors}");
}

#[test]
fn an_egress_for_no_network_is_refused() {
    let text = "[[egress]]\nnetwork = []\ninterface = \"eth0\"\n";
    let errors = Config::parse(text, Path::new("node.toml")).unwrap_err();
    assert!(errors.to_string().contains("node.toml:2: network = []"), "{errors}");
}

#[test]
fn a_key_that_resembles_nothing_gets_no_guess() {
    let refused = |text: &str| Config::parse(text, Path::new("node.toml")).unwrap_err().to_string();
    assert!(!refused("[node]\nlst = 1\n").contains("did you mean"));
    assert!(refused("[node]\nlisten_ = \"x\"\n").contains("did you mean listen?"));
}

#[test]
fn the_rules_of_an_election_are_read() {
    let rules = |text: &str| parse(&format!("{NET}{text}")).expect("parses").networks[0].egress_rules;
    assert_eq!(rules(""), EgressRules::default());
    assert_eq!(
        rules("egress_preempt = false\negress_fallback = \"none\"\negress_balance = false\n"),
        rules("")
    );
    let all = rules("egress_preempt = \"5m\"\negress_fallback = \"local\"\negress_balance = true\n");
    let expected = EgressRules {
        preempt: Some(Duration::from_secs(300)),
        fallback: EgressFallback::Local,
        balance: true,
    };
    assert_eq!(all, expected);
}
