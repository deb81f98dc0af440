//! What works: objects, lists, watches, patches, access.

use std::time::Duration;

use apidouble::{Door, Double, EVENTS, NODES, PODS, Rule, full_node, node};
use serde_json::json;

pub const SOON: Duration = Duration::from_secs(10);
const STRATEGIC: &str = "application/strategic-merge-patch+json";

pub fn plain() -> Double {
    Double::start(Door::http("127.0.0.1:0")).unwrap()
}

#[test]
fn nodes_are_listed_watched_and_patched_over_both_schemes() {
    for door in [Door::http("127.0.0.1:0"), Door::https("127.0.0.1:0"), Door::https("[::1]:0")] {
        let double = Double::start(door).unwrap();
        double.create(&NODES, node("n1", &["10.244.1.0/24"])).unwrap();
        let client = double.client(&double.token("flannel", Rule::flannel()));
        let list = client.get("/api/v1/nodes").unwrap();
        assert_eq!((list.code, &list.headers["content-type"][..]), (200, "application/json"));
        let list = list.json();
        assert_eq!(
            (&list["kind"], &list["items"][0]["spec"]["podCIDR"]),
            (&json!("NodeList"), &json!("10.244.1.0/24"))
        );
        let version = list["metadata"]["resourceVersion"].as_str().unwrap();
        let mut watch = client
            .begin("GET", &format!("/api/v1/nodes?watch=true&resourceVersion={version}"), "", "")
            .unwrap();
        let patch = json!({
            "metadata": {"annotations": {"flannel.alpha.coreos.com/public-ip": "192.0.2.1"}},
            "status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"}]},
        });
        let patched = client.ask("PATCH", "/api/v1/nodes/n1/status", STRATEGIC, &patch.to_string()).unwrap();
        assert_eq!(patched.code, 200);
        let event = watch.event(SOON).unwrap().unwrap();
        assert_eq!(event["type"], "MODIFIED");
        assert_eq!(event["object"], patched.json());
        assert_eq!(event["object"]["status"]["conditions"][0]["type"], "NetworkUnavailable");
        assert_eq!(Some(event["object"].clone()), double.get(&NODES, "n1"));
        double.delete(&NODES, "n1").unwrap();
        assert_eq!(watch.event(SOON).unwrap().unwrap()["type"], "DELETED");
        assert_eq!((double.count("patch", "nodes/status"), double.watches()), (1, 1));
        drop(watch);
        assert!(double.wait(SOON, |double| double.watches() == 0));
    }
}

#[test]
fn pods_and_events_live_in_namespaces() {
    let double = plain();
    let client = double.client("");
    let pod = json!({"metadata": {"name": "p", "namespace": "kube-system"}, "spec": {"nodeName": "n1"}});
    double.create(&PODS, pod).unwrap();
    let pods = "/api/v1/namespaces/kube-system/pods";
    assert_eq!(client.get(&format!("{pods}/p")).unwrap().json()["spec"]["nodeName"], "n1");
    assert_eq!(client.get("/api/v1/namespaces/default/pods/p").unwrap().code, 404);
    let of_node = client.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").unwrap().json();
    assert_eq!(of_node["items"].as_array().unwrap().len(), 1);
    let event = json!({"metadata": {"generateName": "n1."}, "involvedObject": {"kind": "Node", "name": "n1"}, "reason": "R"});
    let made = client.ask("POST", "/api/v1/namespaces/default/events", "", &event.to_string()).unwrap();
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(double.list(&EVENTS)[0]["reason"], "R");
    let nowhere = client.ask("POST", "/api/v1/namespaces/none/events", "", &event.to_string()).unwrap();
    assert_eq!((nowhere.code, &nowhere.json()["message"]), (404, &json!("namespaces \"none\" not found")));
}

#[test]
fn tokens_say_who_may_do_what() {
    let double = plain();
    double.create(&NODES, node("n1", &[])).unwrap();
    double.forbid_anonymous();
    let token = double.token("system:serviceaccount:kube-flannel:flannel", Rule::flannel());
    let client = double.client(&token);
    assert_eq!(client.get("/api/v1/nodes/n1").unwrap().code, 200);
    let refused = client.ask("DELETE", "/api/v1/nodes/n1", "", "").unwrap();
    assert_eq!(
        refused.json(),
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "nodes \"n1\" is forbidden: User \"system:serviceaccount:kube-flannel:flannel\" cannot \
                        delete resource \"nodes\" in API group \"\" at the cluster scope",
            "reason": "Forbidden", "details": {"name": "n1", "kind": "nodes"}, "code": 403,
        })
    );
    assert_eq!(double.client("").get("/api/v1/nodes").unwrap().code, 403);
    assert_eq!(double.client("wrong").get("/api/v1/nodes").unwrap().code, 401);
    double.expire(&token);
    assert_eq!(client.get("/api/v1/nodes/n1").unwrap().code, 401);
    double.renew(&token);
    double.grant("system:serviceaccount:kube-flannel:flannel", &[]);
    assert_eq!(client.get("/api/v1/nodes/n1").unwrap().code, 403);
}

#[test]
fn a_full_node_is_about_as_large_as_real_ones() {
    let size = full_node("node-0001", &["10.244.1.0/24"], "192.0.2.1").to_string().len();
    assert!((14_000..17_000).contains(&size), "{size} bytes");
}

#[test]
fn what_was_compacted_is_answered_410_in_the_form_that_fits() {
    let double = plain();
    for name in ["n1", "n2", "n3"] {
        double.create(&NODES, node(name, &[])).unwrap();
    }
    let client = double.client("");
    let page = client.get("/api/v1/nodes?limit=1").unwrap().json();
    let (then, token) =
        (&page["metadata"]["resourceVersion"], page["metadata"]["continue"].as_str().unwrap());
    let then = then.as_str().unwrap();
    double.delete(&NODES, "n3").unwrap();
    let exact = format!("/api/v1/nodes?resourceVersionMatch=Exact&resourceVersion={then}");
    let rest = format!("/api/v1/nodes?limit=5&continue={token}");
    let watch = format!("/api/v1/nodes?watch=1&resourceVersion={then}");
    for path in [&exact, &rest] {
        assert_eq!(
            client.get(path).unwrap().json()["items"].as_array().unwrap().last().unwrap()["metadata"]["name"],
            "n3"
        );
    }
    double.compact();
    assert_eq!(client.get(&exact).unwrap().json()["reason"], "Expired");
    let refused = client.get(&rest).unwrap();
    assert_eq!(refused.code, 410);
    let again = refused.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    let now = client.get(&format!("/api/v1/nodes?continue={again}")).unwrap().json();
    assert_eq!(
        (now["items"].as_array().unwrap().len(), &now["items"][0]["metadata"]["name"]),
        (1, &json!("n2"))
    );
    let mut watch = client.begin("GET", &watch, "", "").unwrap();
    let event = watch.event(SOON).unwrap().unwrap();
    assert_eq!((watch.code, &event["type"], &event["object"]["code"]), (200, &json!("ERROR"), &json!(410)));
    assert_eq!(watch.event(SOON).unwrap(), None);
}

#[test]
fn streaming_lists_bookmarks_and_ends_come_when_asked_for() {
    let double = plain();
    double.create(&NODES, node("n1", &[])).unwrap();
    double.set_bookmark_pause(Duration::from_millis(50));
    let client = double.client("");
    let query = "/api/v1/nodes?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let mut watch = client.begin("GET", query, "", "").unwrap();
    assert_eq!(watch.event(SOON).unwrap().unwrap()["type"], "ADDED");
    let marked = watch.event(SOON).unwrap().unwrap();
    let metadata = &marked["object"]["metadata"];
    assert_eq!(
        (&marked["type"], &metadata["annotations"]["k8s.io/initial-events-end"]),
        (&json!("BOOKMARK"), &json!("true"))
    );
    let mut marks = 0;
    while let Some(event) = watch.event(SOON).unwrap() {
        assert_eq!(
            (&event["type"], &event["object"]["metadata"]["annotations"]),
            (&json!("BOOKMARK"), &json!(null))
        );
        marks += 1;
    }
    assert!(marks > 0);
    double.set_streaming_lists(false);
    let refused = client.get(query).unwrap().json();
    assert_eq!(
        (&refused["code"], &refused["details"]["causes"][0]["field"]),
        (&json!(422), &json!("sendInitialEvents"))
    );
}
