//! The backend tencent-vpc against a stand-in for the cloud: the machine's metadata and the interface of its
//! route tables, as far as the agent uses them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use apidouble::Door;
use serde_json::{Value, json};

use crate::kube;
use crate::world::{Agent, Host, World, until};

const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"tencent-vpc","AccessKeyID":"AKIDconfig","AccessKeySecret":"s3cr3t-of-the-config"}}"#;

/// What the cloud holds and was asked.
#[derive(Default)]
struct Inside {
    tables: Vec<Value>,
    calls: Vec<String>,
    next_id: u64,
    /// Answered to every call of the interface instead.
    fault: Option<(u16, String)>,
    /// The metadata is not there.
    elsewhere: bool,
    /// `Authorization` of the last call.
    authorization: String,
}

/// The cloud, served inside a host for as long as the test runs.
#[derive(Clone)]
struct Cloud {
    inside: Arc<Mutex<Inside>>,
    address: SocketAddr,
}

impl Cloud {
    fn on(host: &Host, tables: Vec<Value>) -> Cloud {
        let listener = host.netns.run(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let inside = Arc::new(Mutex::new(Inside { tables, next_id: 1000, ..Inside::default() }));
        let cloud = Cloud { inside, address };
        let served = cloud.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = served.serve(stream.unwrap());
            }
        });
        cloud
    }

    fn with<T>(&self, look: impl FnOnce(&mut Inside) -> T) -> T {
        look(&mut self.inside.lock().unwrap())
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let header = |name: &str| {
            let found = head.lines().filter_map(|line| line.split_once(": "));
            found
                .filter(|(n, _)| n.eq_ignore_ascii_case(name))
                .map(|(_, v)| v.to_owned())
                .next()
                .unwrap_or_default()
        };
        let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let (status, text) = if path == "/" {
            assert_eq!(
                (header("x-tc-version").as_str(), header("x-tc-region").as_str()),
                ("2017-03-12", "ap-test")
            );
            assert_eq!(header("host"), self.address.to_string());
            assert!(header("x-tc-timestamp").parse::<u64>().is_ok());
            self.with(|inside| {
                inside.authorization = header("authorization");
                inside.call(&header("x-tc-action"), &serde_json::from_slice(&body).unwrap())
            })
        } else {
            let known = match path.strip_prefix("/latest/meta-data/") {
                _ if self.with(|inside| inside.elsewhere) => None,
                Some("placement/region") => Some("ap-test"),
                Some("mac") => Some("52:54:00:00:00:01\n"),
                Some("network/interfaces/macs/52:54:00:00:00:01/vpc-id") => Some("vpc-test"),
                _ => None,
            };
            known.map_or((404, String::new()), |text| (200, text.to_owned()))
        };
        write!(
            stream,
            "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        )
    }

    fn agent(&self, host: &Host, env: &[(&str, &str)]) -> Agent {
        let url = format!("http://{}", self.address);
        let mut all = vec![
            ("LODEN_STORE", host.store()),
            ("LODEN_TENCENT_METADATA", url.as_str()),
            ("LODEN_TENCENT_API", url.as_str()),
            ("LODEN_TENCENT_RECHECK", "1"),
            ("ACCESS_KEY_ID", ""),
            ("ACCESS_KEY_SECRET", ""),
        ];
        all.extend(env);
        host.agent_in(&[], &all)
    }

    /// Gateways of enabled routes to a subnet, table by table.
    fn gateways(&self, subnet: &str) -> Vec<Vec<String>> {
        let of = |table: &Value| {
            let routes = table["RouteSet"].as_array().cloned().unwrap_or_default();
            let ours =
                routes.into_iter().filter(|r| r["DestinationCidrBlock"] == subnet && r["Enabled"] != false);
            ours.map(|r| r["GatewayId"].as_str().unwrap_or_default().to_owned()).collect()
        };
        self.with(|inside| inside.tables.iter().map(of).collect())
    }

    fn changes(&self) -> Vec<String> {
        self.with(|inside| {
            inside.calls.iter().filter(|call| !call.starts_with("Describe")).cloned().collect()
        })
    }
}

impl Inside {
    fn call(&mut self, action: &str, body: &Value) -> (u16, String) {
        self.calls.push(action.to_owned());
        if let Some(fault) = &self.fault {
            return fault.clone();
        }
        let table = |tables: &mut Vec<Value>| {
            tables.iter().position(|table| table["RouteTableId"] == body["RouteTableId"]).expect("a table")
        };
        let mut answer = json!({ "RequestId": "test" });
        match action {
            "DescribeRouteTables" => {
                assert_eq!(body["Filters"], json!([{ "Name": "vpc-id", "Values": ["vpc-test"] }]));
                let number = |key: &str| body[key].as_str().unwrap().parse::<usize>().unwrap();
                let page: Vec<Value> =
                    self.tables.iter().skip(number("Offset")).take(number("Limit")).cloned().collect();
                answer["RouteTableSet"] = page.into();
                answer["TotalCount"] = self.tables.len().into();
            }
            "CreateRoutes" => {
                let at = table(&mut self.tables);
                let mut route = body["Routes"][0].clone();
                assert_eq!((&route["GatewayType"], &route["Enabled"]), (&json!("NORMAL_CVM"), &json!(true)));
                (route["RouteType"], route["RouteId"]) = (json!("USER"), json!(self.next_id));
                self.next_id += 1;
                self.tables[at]["RouteSet"].as_array_mut().unwrap().push(route);
            }
            "DeleteRoutes" => {
                let at = table(&mut self.tables);
                let gone = &body["Routes"][0]["RouteId"];
                self.tables[at]["RouteSet"].as_array_mut().unwrap().retain(|route| route["RouteId"] != *gone);
            }
            other => panic!("{other} is not for the agent to call"),
        }
        (200, json!({ "Response": answer }).to_string())
    }
}

fn table(id: &str, used: bool) -> Value {
    let associations = if used { json!([{ "SubnetId": "subnet-1" }]) } else { json!([]) };
    json!({ "RouteTableId": id, "Main": false, "AssociationSet": associations, "RouteSet": [] })
}

#[test]
fn tencent_vpc_has_a_route_in_every_table_in_use() {
    let world = World::with_config(1, CONFIG);
    let host = &world.hosts[0];
    // More than a page, and what an interface may leave out.
    let mut tables: Vec<Value> = (0..104).map(|n| table(&format!("rtb-{n}"), n % 26 == 0)).collect();
    tables.push(json!({ "RouteTableId": "rtb-bare", "RouteSet": [{}, { "RouteId": 1 }] }));
    tables.push(json!({ "RouteSet": [] }));
    let cloud = Cloud::on(host, tables);
    let agent = cloud.agent(host, &[]);
    agent.ready();
    assert_eq!(host.env("FLANNEL_MTU"), "1500");
    let subnet = host.subnet("FLANNEL_SUBNET").to_string();
    let here = vec!["192.0.2.11".to_owned()];
    let wanted: Vec<Vec<String>> = (0..106)
        .map(|n| if n == 104 || n < 104 && n % 26 == 0 { here.clone() } else { Vec::new() })
        .collect();
    assert_eq!(cloud.gateways(&subnet), wanted);
    let credential = cloud.with(|inside| inside.authorization.clone());
    assert!(credential.starts_with("TC3-HMAC-SHA256 Credential=AKIDconfig/"), "{credential}");
    assert!(
        credential.contains("/vpc/tc3_request, SignedHeaders=content-type;host, Signature="),
        "{credential}"
    );

    // A new agent finds all as it should be.
    assert_eq!(agent.terminate(), 0);
    std::fs::remove_file(host.dir.join("log")).unwrap();
    let made = cloud.changes();
    let agent = cloud.agent(host, &[]);
    agent.ready();
    assert_eq!(cloud.changes(), made, "nothing to do");

    // What somebody takes away, disables or points elsewhere comes back.
    let damages: [fn(&mut Vec<Value>); 3] = [
        Vec::clear,
        |routes| routes[0]["Enabled"] = json!(false),
        |routes| routes[0]["GatewayId"] = json!("192.0.2.99"),
    ];
    for damage in damages {
        cloud.with(|inside| damage(inside.tables[26]["RouteSet"].as_array_mut().unwrap()));
        until("the route again", || {
            let found = cloud.gateways(&subnet);
            if found == wanted { Ok(()) } else { Err(format!("{:?}", found[26])) }
        });
    }
    let (_, status) = host.status(&["-o", "json"]);
    for text in [agent.log(), status] {
        assert!(!text.contains("s3cr3t"), "the secret is shown: {text}");
    }
}

#[test]
fn tencent_vpc_faults_are_named_and_tried_again() {
    let error = |code: &str, message: &str| {
        (
            200,
            json!({ "Response": { "Error": { "Code": code, "Message": message }, "RequestId": "x" } })
                .to_string(),
        )
    };
    for (fault, sentence) in [
        (
            Some(error("AuthFailure.SecretIdNotFound", "The SecretId is not found")),
            "DescribeRouteTables: AuthFailure.SecretIdNotFound: The SecretId is not found; check AccessKeyID",
        ),
        (Some(error("AuthFailure.SignatureExpire", "expired")), "set this machine's clock"),
        (Some(error("LimitExceeded", "too\nmany")), "LimitExceeded: too many; a route table holds 50 routes"),
        (Some((502, "<html>bad gateway</html>".to_owned())), "answers with status 502 and no Response"),
        (Some((200, r#"{"Response":{}}"#.to_owned())), "shows no route table in use"),
        (Some((200, r#"{"Response":{"Error":{}}}"#.to_owned())), "an error without a code"),
        (
            Some((200, r#"{"Response":{"RouteTableSet":null,"TotalCount":99}}"#.to_owned())),
            "shows no route table",
        ),
        (None, "ask this machine's metadata for placement/region: status 404"),
    ] {
        let world = World::with_config(1, CONFIG);
        let host = &world.hosts[0];
        let cloud = Cloud::on(host, vec![table("rtb-0", true)]);
        cloud.with(|inside| (inside.elsewhere, inside.fault) = (fault.is_none(), fault));
        let mut agent = cloud.agent(host, &[]);
        agent.says(sentence);
        assert!(agent.alive() && !host.subnet_file().exists(), "not ready without the route");
        until("the trouble where all look", || {
            let told = host.troubles();
            if told.contains(sentence) { Ok(()) } else { Err(told) }
        });
        cloud.with(|inside| (inside.elsewhere, inside.fault) = (false, None));
        agent.ready();
        assert!(!agent.log().contains("s3cr3t"), "{}", agent.log());
    }
}

#[test]
fn tencent_vpc_credentials_are_looked_for_and_named() {
    let without = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"tencent-vpc"}}"#;
    let world = World::with_config(1, without);
    let host = &world.hosts[0];
    let cloud = Cloud::on(host, vec![table("rtb-0", true)]);
    let agent = cloud.agent(host, &[("ACCESS_KEY_ID", "AKIDenv")]);
    agent.says(
        "needs AccessKeyID and AccessKeySecret in the network config, or ACCESS_KEY_ID and ACCESS_KEY_SECRET",
    );
    assert!(cloud.changes().is_empty() && !host.subnet_file().exists());
    assert_eq!(agent.terminate(), 0);
    let agent = cloud
        .agent(host, &[("ACCESS_KEY_ID", "AKIDenv"), ("ACCESS_KEY_SECRET", "s3cr3t-of-the-environment")]);
    agent.ready();
    let credential = cloud.with(|inside| inside.authorization.clone());
    assert!(credential.contains("Credential=AKIDenv/"), "{credential}");
    assert!(!agent.log().contains("s3cr3t"), "{}", agent.log());
}

#[test]
fn tencent_vpc_is_asked_over_https_by_the_systems_roots() {
    let world = World::with_config(1, CONFIG);
    let host = &world.hosts[0];
    let cloud = Cloud::on(host, vec![table("rtb-0", true)]);
    // Any server with a certificate will do: that it answers, and with no Response, is past its TLS.
    let (server, stranger) =
        (kube::api_server(host), apidouble::Double::start(Door::https("127.0.0.1:0")).unwrap());
    for (roots, sentence) in [
        (stranger.ca_pem(), "invalid peer certificate"),
        (server.ca_pem(), "and no Response; is it the cloud"),
    ] {
        let file = host.dir.join("roots.pem");
        std::fs::write(&file, roots).unwrap();
        let (file, url) = (file.display().to_string(), server.url());
        let agent =
            cloud.agent(host, &[("SSL_CERT_FILE", file.as_str()), ("LODEN_TENCENT_API", url.as_str())]);
        agent.says(sentence);
        assert_eq!(agent.terminate(), 0);
    }
}

#[test]
fn tencent_vpc_mistakes_in_the_configuration_are_named() {
    for (members, sentence) in [
        (r#""AccessKeyID":7"#, "AccessKeyID"),
        (r#""AccessKeySecret":["s3cr3t"]"#, "AccessKeySecret"),
        (r#""AccessKeyID":"a b","AccessKeySecret":"s3cr3t""#, "AccessKeyID must be of letters"),
    ] {
        let world = World::with_config(1, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#);
        let bad = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"tencent-vpc",{members}}}}}"#);
        let connection = rusqlite::Connection::open(world.dir.path().join("leases.db")).unwrap();
        connection.execute("INSERT OR REPLACE INTO config (value) VALUES (?1)", [&bad]).unwrap();
        let mut agent = world.hosts[0].agent(&[]);
        agent.says("fetch network config: ");
        assert!(agent.log().contains(sentence) && !agent.log().contains("s3cr3t"), "{}", agent.log());
        assert!(agent.alive());
    }
}
