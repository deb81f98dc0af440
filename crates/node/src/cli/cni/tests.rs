use super::*;

#[test]
fn words_and_environment_are_read() {
    let read = |words: &str, env: &[(&str, &str)]| {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        options(&words, &|key| env.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned()))
    };
    let (verb, options) = read("add net pod1", &[]).unwrap();
    let options = options.unwrap();
    assert_eq!((verb.as_str(), options.netns.as_str()), ("add", "/run/netns/pod1"));
    assert_eq!(options.runner.container_id, attach::container_id("/run/netns/pod1"));
    assert_eq!((options.runner.ifname.as_str(), options.runner.path.as_str()), ("eth0", "/opt/cni/bin"));
    let env = [
        ("CNI_IFNAME", "net1"),
        ("CNI_PATH", "/a:/b"),
        ("NETCONFPATH", "/c"),
        ("CNI_ARGS", "A=1"),
        ("CAP_ARGS", "{\"mac\": \"m\"}"),
    ];
    let (_, options) = read("del net /x/y -o json --id c9 --timeout 7 --cache-dir /k", &env).unwrap();
    let options = options.unwrap();
    let runner = &options.runner;
    assert!(options.format == Format::Json && options.conf_dir == Path::new("/c"));
    assert_eq!(
        (runner.ifname.as_str(), runner.path.as_str(), runner.container_id.as_str()),
        ("net1", "/a:/b", "c9")
    );
    assert_eq!((runner.limit.as_secs(), runner.results.as_path()), (7, Path::new("/k/results")));
    assert!(runner.capabilities.get("mac").is_some());
    let (_, options) = read("add net x -i net2", &env).unwrap();
    assert_eq!(options.unwrap().runner.ifname, "net2");
    for words in [
        "",
        "add",
        "add net",
        "status",
        "status net x",
        "gc net x",
        "fly net x",
        "add net x -o yaml",
        "add net x y",
        "add net x --id",
        "add net x -z",
    ] {
        assert!(read(words, &[]).is_err(), "{words}");
    }
    for (key, value, want) in [
        ("CAP_ARGS", "[", "CAP_ARGS: "),
        ("CAP_ARGS", "[]", "CAP_ARGS: not a JSON object"),
        ("CNI_ARGS", "A", "ARGS: invalid pair \"A\""),
    ] {
        let (_, options) = read("add net x", &[(key, value)]).unwrap();
        assert!(options.err().unwrap().starts_with(want), "{key} {value}");
    }
}

#[test]
fn the_container_id_is_cnitools() {
    // `printf %s /run/netns/x | sha512sum`
    assert_eq!(attach::container_id("/run/netns/x").len(), "cnitool-".len() + 20);
    assert!(attach::container_id("/run/netns/x").starts_with("cnitool-"));
}
