//! The route tables of a Tencent VPC (flannel.md 6.10): our subnet leads to this machine in each of them that
//! is in use. No registry of leases; it is here because it speaks HTTPS as those do.
//!
//! Takes credentials, a subnet and an address; asks the machine's metadata where it is. Every optional member
//! of an answer may be absent. Nothing of the credentials gets into a message.

mod http;
mod sign;

use std::time::{SystemTime, UNIX_EPOCH};

use ::http::Request;
use http_body_util::Full;
use ipnet::IpNet;
use model::config::TencentConf;
use model::gojson::Json;

/// Where to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The machine's own metadata.
    pub metadata: String,
    /// The cloud's interface.
    pub api: String,
}

impl Default for Places {
    fn default() -> Places {
        Places {
            metadata: "http://metadata.tencentyun.com".to_owned(),
            api: "https://vpc.tencentcloudapi.com".to_owned(),
        }
    }
}

/// Route tables listed at once, the most the interface allows.
const PAGE: usize = 100;
/// Pages read at most: an interface that never comes to an end shall not keep us.
const PAGES: usize = 100;
const GATEWAY: &str = "NORMAL_CVM";
const CONTENT: &str = "application/json";

/// The tables of the network this machine is in.
pub struct Vpc {
    places: Places,
    who: TencentConf,
    /// Region and network, which a machine keeps for its life.
    here: Option<(String, String)>,
}

/// A route as a table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    id: Option<u64>,
    gateway: Option<String>,
    enabled: bool,
}

/// What a table needs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Work {
    table: String,
    delete: Vec<u64>,
    create: bool,
}

impl Vpc {
    /// Nothing is asked yet.
    pub fn new(places: Places, who: TencentConf) -> Vpc {
        Vpc { places, who, here: None }
    }

    /// Makes the route where it is missing, disabled, or leads to a machine that had the subnet before; gives
    /// what was done, for the log.
    ///
    /// # Errors
    /// One sentence; with several tables the first one's, after all have been tried.
    pub async fn ensure(&mut self, dst: IpNet, gateway: &str) -> Result<Vec<String>, String> {
        let tables = self.tables().await?;
        let work: Vec<Work> = tables.iter().filter_map(|table| needs(table, dst, gateway)).collect();
        if tables.iter().filter(|table| in_use(table)).count() == 0 {
            return Err(
                "the VPC of this machine shows no route table in use; check that the key may call DescribeRouteTables"
                    .to_owned(),
            );
        }
        let (mut done, mut failed) = (Vec::new(), None);
        for Work { table, delete, create } in work {
            match self.work(&table, &delete, create.then_some((dst, gateway))).await {
                Ok(()) => done.push(format!("route {dst} to {gateway} in route table {table}")),
                Err(why) => drop(failed.get_or_insert(format!("route table {table}: {why}"))),
            }
        }
        failed.map_or(Ok(done), Err)
    }

    /// Whether the route stands everywhere.
    ///
    /// # Errors
    /// As [`Vpc::ensure`].
    pub async fn stands(&mut self, dst: IpNet, gateway: &str) -> Result<bool, String> {
        Ok(self.tables().await?.iter().all(|table| needs(table, dst, gateway).is_none()))
    }

    /// Takes our route away.
    ///
    /// # Errors
    /// As [`Vpc::ensure`].
    pub async fn remove(&mut self, dst: IpNet, gateway: &str) -> Result<(), String> {
        for table in self.tables().await? {
            let Some(id) = text(&table, "RouteTableId") else { continue };
            let ours = entries(&table, dst).into_iter().filter(|e| e.gateway.as_deref() == Some(gateway));
            let delete: Vec<u64> = ours.filter_map(|e| e.id).collect();
            self.work(id, &delete, None).await.map_err(|why| format!("route table {id}: {why}"))?;
        }
        Ok(())
    }

    async fn work(
        &mut self,
        table: &str,
        delete: &[u64],
        create: Option<(IpNet, &str)>,
    ) -> Result<(), String> {
        let routes = |items: Vec<Json>| {
            Json::object([("RouteTableId", Json::from(table)), ("Routes", Json::Array(items))])
        };
        if !delete.is_empty() {
            let items = delete.iter().map(|id| Json::object([("RouteId", Json::from(*id))])).collect();
            self.call("DeleteRoutes", routes(items)).await?;
        }
        if let Some((dst, gateway)) = create {
            let route = Json::object([
                ("DestinationCidrBlock", Json::from(dst.to_string())),
                ("GatewayType", Json::from(GATEWAY)),
                ("GatewayId", Json::from(gateway)),
                ("Enabled", Json::from(true)),
            ]);
            self.call("CreateRoutes", routes(vec![route])).await?;
        }
        Ok(())
    }

    /// All route tables of the network, page by page.
    async fn tables(&mut self) -> Result<Vec<Json>, String> {
        let (_, vpc) = self.here().await?;
        let mut tables: Vec<Json> = Vec::new();
        for _ in 0..PAGES {
            let filter =
                Json::object([("Name", Json::from("vpc-id")), ("Values", Json::array([vpc.as_str()]))]);
            let page = Json::object([
                ("Filters", Json::Array(vec![filter])),
                ("Offset", Json::from(tables.len().to_string())),
                ("Limit", Json::from(PAGE.to_string())),
            ]);
            let answer = self.call("DescribeRouteTables", page).await?;
            let found = answer.get("RouteTableSet").and_then(Json::as_array).unwrap_or_default();
            tables.extend_from_slice(found);
            let total = answer.get("TotalCount").and_then(Json::as_int::<u64>);
            let more = total.map_or(found.len() == PAGE, |total| (tables.len() as u64) < total);
            if found.is_empty() || !more {
                break;
            }
        }
        Ok(tables)
    }

    /// Region and network of this machine, by its own metadata.
    async fn here(&mut self) -> Result<(String, String), String> {
        if let Some(here) = &self.here {
            return Ok(here.clone());
        }
        let region = self.metadata("placement/region").await?;
        let mac = self.metadata("mac").await?;
        let vpc = self.metadata(&format!("network/interfaces/macs/{mac}/vpc-id")).await?;
        Ok(self.here.insert((region, vpc)).clone())
    }

    async fn metadata(&self, what: &str) -> Result<String, String> {
        let url = format!("{}/latest/meta-data/{what}", self.places.metadata);
        let wrong = |why: String| {
            format!(
                "ask this machine's metadata for {what}: {why}; the backend tencent-vpc works on machines of Tencent Cloud only"
            )
        };
        let uri: ::http::Uri = url.parse().map_err(|error| wrong(format!("{url}: {error}")))?;
        let request = Request::get(&uri).header("Host", authority(&uri)).body(Full::default());
        let (status, body) =
            http::send(request.map_err(|error| wrong(error.to_string()))?).await.map_err(wrong)?;
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        // It becomes part of a path, a header and a filter.
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_:.".contains(&b));
        match status {
            200 if plain && !text.is_empty() => Ok(text),
            200 => Err(wrong("the answer is no such thing".to_owned())),
            _ => Err(wrong(format!("status {status}"))),
        }
    }

    /// An action of the interface; gives its `Response`.
    async fn call(&mut self, action: &str, parameters: Json) -> Result<Json, String> {
        let (region, _) = self.here().await?;
        let wrong = |why: String| format!("{action}: {why}");
        let uri: ::http::Uri = format!("{}/", self.places.api)
            .parse()
            .map_err(|error| wrong(format!("{}: {error}", self.places.api)))?;
        let host = authority(&uri);
        let body = parameters.to_compact();
        let time_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let signed = sign::Signed {
            service: "vpc",
            host: &host,
            content_type: CONTENT,
            body: body.as_bytes(),
            time_s,
        };
        let request = Request::post(&uri)
            .header("Host", host.as_str())
            .header("Content-Type", CONTENT)
            .header("Authorization", sign::authorization(&self.who.id, self.who.secret.bytes(), &signed))
            .header("X-TC-Action", action)
            .header("X-TC-Version", "2017-03-12")
            .header("X-TC-Timestamp", time_s.to_string())
            .header("X-TC-Region", region)
            .body(Full::from(body));
        let request = request.map_err(|error| wrong(error.to_string()))?;
        let (status, answer) = http::send(request).await.map_err(|why| wrong(format!("{host}: {why}")))?;
        let json = Json::parse(&answer).ok().and_then(|json| json.get("Response").cloned());
        let Some(response) = json else {
            return Err(wrong(format!(
                "{host} answers with status {status} and no Response; is it the cloud's interface?"
            )));
        };
        let Some(error) = response.get("Error") else { return Ok(response) };
        let code = text(error, "Code").unwrap_or("an error without a code");
        let said = text(error, "Message").unwrap_or_default();
        Err(wrong(format!("{code}: {}{}", brief(said), way_out(code))))
    }
}

fn authority(uri: &::http::Uri) -> String {
    uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default()
}

/// What a person can do about a code.
fn way_out(code: &str) -> &'static str {
    match code {
        "AuthFailure.SignatureExpire" => "; set this machine's clock",
        code if code.starts_with("AuthFailure") => {
            "; check AccessKeyID and AccessKeySecret, or ACCESS_KEY_ID and ACCESS_KEY_SECRET"
        }
        code if code.starts_with("UnauthorizedOperation") => {
            "; the key needs the right to describe, create and delete routes of this VPC"
        }
        code if code.starts_with("LimitExceeded") => {
            "; a route table holds 50 routes unless the cloud raised it"
        }
        _ => "",
    }
}

/// A message of the other side on one line, no longer than it is of use.
fn brief(text: &str) -> String {
    text.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn text<'a>(json: &'a Json, key: &str) -> Option<&'a str> {
    json.get(key).and_then(Json::as_str)
}

/// Whether packets of any machine go by a table: a network's main one, and those with subnets. One that
/// does not say counts as used.
fn in_use(table: &Json) -> bool {
    let main = table.get("Main").and_then(Json::as_bool);
    let subnets = table.get("AssociationSet").and_then(Json::as_array);
    main == Some(true) || subnets.is_none_or(|subnets| !subnets.is_empty())
}

/// Routes of users to a destination by a machine.
fn entries(table: &Json, dst: IpNet) -> Vec<Entry> {
    let routes = table.get("RouteSet").and_then(Json::as_array).unwrap_or_default();
    let same = |key, wanted: &str, route: &&Json| text(route, key).is_none_or(|have| have == wanted);
    let fits = |route: &&Json| {
        text(route, "DestinationCidrBlock").and_then(|net| net.parse::<IpNet>().ok()) == Some(dst)
            && same("GatewayType", GATEWAY, route)
            && same("RouteType", "USER", route)
    };
    let entry = |route: &Json| Entry {
        id: route.get("RouteId").and_then(Json::as_int::<u64>),
        gateway: text(route, "GatewayId").map(str::to_owned),
        enabled: route.get("Enabled").and_then(Json::as_bool).unwrap_or(true),
    };
    routes.iter().filter(fits).map(entry).collect()
}

/// What has to be done to a table; nothing if it is right, or no packet goes by it.
fn needs(table: &Json, dst: IpNet, gateway: &str) -> Option<Work> {
    let id = text(table, "RouteTableId").filter(|_| in_use(table))?;
    let (right, wrong): (Vec<Entry>, Vec<Entry>) =
        entries(table, dst).into_iter().partition(|e| e.enabled && e.gateway.as_deref() == Some(gateway));
    // The subnet is ours by its lease, so a route of it to another machine is of a node that was.
    let delete: Vec<u64> = wrong.into_iter().filter_map(|e| e.id).collect();
    let work = Work { table: id.to_owned(), delete, create: right.is_empty() };
    (work.create || !work.delete.is_empty()).then_some(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_gets_what_it_lacks() {
        let route = |members: &str| {
            format!(r#"{{"RouteTableId":"rtb-1","AssociationSet":[{{}}],"RouteSet":[{members}]}}"#)
        };
        let ours = r#""DestinationCidrBlock":"10.244.1.0/24","GatewayType":"NORMAL_CVM","RouteType":"USER""#;
        let work = |delete: &[u64], create| Some((delete.to_vec(), create));
        for (table, wanted) in [
            (route(""), work(&[], true)),
            (route(&format!(r#"{{{ours},"GatewayId":"192.0.2.11","RouteId":1,"Enabled":true}}"#)), None),
            (route(&format!(r#"{{{ours},"GatewayId":"192.0.2.11","RouteId":1}}"#)), None),
            (
                route(&format!(r#"{{{ours},"GatewayId":"192.0.2.11","RouteId":7,"Enabled":false}}"#)),
                work(&[7], true),
            ),
            (route(&format!(r#"{{{ours},"GatewayId":"192.0.2.99","RouteId":8}}"#)), work(&[8], true)),
            (route(&format!(r#"{{{ours},"RouteId":8}}"#)), work(&[8], true)),
            (route(&format!(r#"{{{ours}}}"#)), work(&[], true)),
            (
                route(&format!(
                    r#"{{{ours},"GatewayId":"192.0.2.11","RouteId":1}},{{{ours},"GatewayId":"192.0.2.99","RouteId":9}}"#
                )),
                work(&[9], false),
            ),
            (
                route(
                    r#"{"DestinationCidrBlock":"10.244.1.0/24","GatewayType":"VPN","GatewayId":"vpngw-1","RouteId":3},
                       {"DestinationCidrBlock":"10.244.1.0/24","RouteType":"NETD","GatewayId":"x","RouteId":4},
                       {"DestinationCidrBlock":"10.244.0.0/16","GatewayType":"NORMAL_CVM","RouteId":5},
                       {"DestinationCidrBlock":null},{},7"#,
                ),
                work(&[], true),
            ),
            (r#"{"RouteTableId":"rtb-1","Main":false,"AssociationSet":[]}"#.to_owned(), None),
            (r#"{"RouteTableId":"rtb-1","Main":true,"AssociationSet":[]}"#.to_owned(), work(&[], true)),
            (r#"{"RouteTableId":"rtb-1","RouteSet":null}"#.to_owned(), work(&[], true)),
            (r#"{"RouteSet":[]}"#.to_owned(), None),
            ("null".to_owned(), None),
        ] {
            let json: Json = table.parse().unwrap_or_else(|error| panic!("{table}: {error}"));
            let found = needs(&json, "10.244.1.0/24".parse().expect("a network"), "192.0.2.11");
            assert_eq!(found.map(|work| (work.delete, work.create)), wanted, "{table}");
        }
    }
}
