//! `loden capture` beside the fast path: who goes past devices is not lost, and who is lost is still named.

use super::{Talk, Two, can, has_tun};
use crate::capture::Watching;

#[test]
fn what_goes_fast_is_not_missing() {
    if !can("what_goes_fast_is_not_missing") {
        return;
    }
    for (backend, skipped, behind) in [
        ("vxlan", "cni0, flannel.1", "flannel.1"),
        ("host-gw", "cni0", "eth0"),
        ("udp", "cni0, flannel0", "flannel0"),
    ] {
        if backend == "udp" && !has_tun() {
            continue;
        }
        let two = Two::start(backend, "on");
        two.like_cards();
        let host = &two.world.hosts[0];
        let talk = Talk::new(&two.pods[0], &two.pods[1]).patient();
        talk.until_fast(&[host]);
        let pod = two.pods[0].netns.path().display().to_string();
        let (to, port) = (talk.to.ip().to_string(), format!("{}/udp", talk.to.port()));
        let capture =
            |words: &[&str]| Watching::start(host, &[&["capture", &pod, &to, &port], words].concat());

        let watching = capture(&["--count", "40"]);
        talk.whole(20);
        let (code, out, err) = watching.end();
        assert_eq!((code, out.lines().count()), (0, 40), "{backend}: {out} {err}");
        assert!(!out.contains("not seen"), "{backend}: {out}");
        assert!(err.contains("the fast path is on") && err.contains("none of which was lost"), "{err}");
        let out_of_pod = format!("  went fast: skipped {skipped}");
        let fast = out.lines().filter(|line| line.ends_with(&out_of_pod)).count();
        assert!(fast > 10, "{backend}: {out}");

        // A new rule voids all flows, so that the slow path drops it.
        let watching = capture(&["--count", "4", "-o", "json"]);
        talk.works();
        host.sh("nft add table inet fault");
        host.sh("nft add chain inet fault c { type filter hook forward priority -5 ; }");
        host.sh(&format!("nft add rule inet fault c udp dport {} drop", talk.to.port()));
        for _ in 0..2 {
            talk.ask.send_to(b"lost", talk.to).unwrap();
        }
        let (code, out, err) = watching.end();
        host.sh("nft delete table inet fault");
        assert_eq!(code, 1, "{backend}: {out} {err}");
        let last = format!(r#""missing":[{{"hop":"{behind}","packets":2}}],"frames_lost":0,"opaque":[]}}}}"#);
        assert!(out.trim_end().ends_with(&last), "{backend}: {out}");
    }
}
