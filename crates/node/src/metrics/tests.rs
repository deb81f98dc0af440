use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::*;
use crate::board::{Board, Topic};

/// One line of a page.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Type and help by name.
type Families = BTreeMap<String, (String, String)>;

/// A strict reader of text format 0.0.4, by its description; a fault is a sentence.
fn parse(page: &str) -> Result<(Families, Vec<Sample>), String> {
    let is_name = |text: &str| {
        let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == ':');
        first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    };
    if !page.is_empty() && !page.ends_with('\n') {
        return Err("the last line does not end".to_owned());
    }
    let (mut families, mut samples) = (BTreeMap::new(), Vec::new());
    let (mut help, mut current) = (None, String::new());
    for line in page.lines() {
        let fault = |what: &str| format!("{what}: {line:?}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').ok_or_else(|| fault("HELP without text"))?;
            help = Some((name.to_owned(), text.to_owned()));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| fault("TYPE without a type"))?;
            let (of, text) = help.take().ok_or_else(|| fault("TYPE without HELP before"))?;
            if of != name || families.insert(name.to_owned(), (kind.to_owned(), text)).is_some() {
                return Err(fault("a family twice, or of another name"));
            }
            current = name.to_owned();
        } else {
            let at = line.find(['{', ' ']).ok_or_else(|| fault("no value"))?;
            let name = &line[..at];
            let (labels, value) = if line[at..].starts_with('{') {
                let end = line.rfind("} ").ok_or_else(|| fault("labels do not end"))?;
                (labels(&line[at + 1..end]).ok_or_else(|| fault("labels"))?, &line[end + 2..])
            } else {
                (BTreeMap::new(), &line[at + 1..])
            };
            let base = name.strip_prefix(current.as_str()).ok_or_else(|| fault("outside its family"))?;
            let histogram = families.get(&current).is_some_and(|(kind, _)| kind == "histogram");
            let fits =
                if histogram { ["_bucket", "_sum", "_count"].contains(&base) } else { base.is_empty() };
            if !is_name(name) || !fits {
                return Err(fault("not a name of this family"));
            }
            let value = value.parse().map_err(|_| fault("no number"))?;
            samples.push(Sample { name: name.to_owned(), labels, value });
        }
    }
    let mut seen = BTreeSet::new();
    for sample in &samples {
        if !seen.insert((sample.name.clone(), sample.labels.clone())) {
            return Err(format!("twice: {sample:?}"));
        }
    }
    Ok((families, samples))
}

/// `a="b",c="d"` with escapes.
fn labels(mut text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"")?;
        let (mut value, mut chars) = (String::new(), rest.char_indices());
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    _ => return None,
                }),
                (_, c) => value.push(c),
            }
        };
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !plain || name.starts_with("__") || labels.insert(name.to_owned(), value).is_some() {
            return None;
        }
        text = &rest[end + 1..];
        text = text.strip_prefix(',').unwrap_or(text);
    }
    Some(labels)
}

fn around() -> Surroundings {
    Surroundings {
        now: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        uptime: Duration::from_secs(500),
        process: Some(Process {
            cpu_s: 1.25,
            resident: 1 << 24,
            fds: 12,
            max_fds: 1024,
            ..Process::default()
        }),
        probes: Probes { mtu: Some(1450), verdicts: [("ok", 2)].into(), ..Probes::default() },
        dropped: vec![Dropped {
            device: "flannel.\"1\\".to_owned(),
            family: "ip".to_owned(),
            packets: 7,
            bytes: 700,
        }],
    }
}

/// A page on which every family has something.
fn full() -> String {
    let board = Board::default();
    board.set(Topic::Watch, "away");
    board.set(Topic::Object("a".to_owned()), "refused");
    board.set(Topic::Object("b".to_owned()), "refused");
    let mut counts = Counts::default();
    let inputs = Inputs {
        own: Some(model::Lease::default()),
        ends: Some(Duration::from_secs(800)),
        ..Inputs::default()
    };
    inputs.heard.touch();
    let mut report = Report {
        peers: 3,
        left_out: [("10.0.0.0/24".to_owned(), "why".to_owned())].into(),
        drift: [(("route", Cause::Missing), 2), (("fdb", Cause::Altered), 1)].into(),
        ..Report::default()
    };
    report.done.push(&plan::Step::Delete(plan::Object::Charon));
    counts.round(&inputs, &report, Duration::from_micros(700));
    counts.round(&inputs, &Report { full: true, ..report }, Duration::from_secs(9));
    page(&counts, &board.now(), &around())
}

#[test]
fn the_page_is_text_format_and_keeps_the_naming_rules() {
    let (families, samples) = parse(&full()).unwrap_or_else(|fault| panic!("{fault}\n{}", full()));
    for family in FAMILIES {
        assert!(families.contains_key(family.name), "{} is on no page", family.name);
    }
    for (name, (kind, help)) in &families {
        assert!(name.starts_with("loden_") || name.starts_with("process_"), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}: only counters end so");
        assert!(help.ends_with('.') && help.len() > 20, "{name}: {help:?} is a sentence");
        // What promtool's lint complains of: units that are not base units, types and their suffixes in names.
        for bad in ["_ms", "_millis", "_minutes", "_kb", "_kib", "_percent", "counter", "gauge", "histogram"]
        {
            assert!(!name.contains(bad), "{name}: {bad}");
        }
    }
    let value = |name: &str, with: &[(&str, &str)]| {
        let fits = |s: &&Sample| {
            s.name == name && with.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|have| have == v))
        };
        samples.iter().find(fits).unwrap_or_else(|| panic!("no {name} {with:?}")).value
    };
    assert_eq!(value("loden_peers", &[("state", "left_out")]), 1.0);
    assert_eq!(value("loden_reconcile_repairs_total", &[("kind", "route"), ("cause", "missing")]), 4.0);
    assert_eq!(value("loden_troubles", &[("topic", "object")]), 2.0);
    assert_eq!(value("loden_lease_expiry_timestamp_seconds", &[]), 1_800_000_300.0);
    assert_eq!(value("loden_source_check_dropped_packets_total", &[("device", "flannel.\"1\\")]), 7.0);
    // Buckets hold all below their limit, and the last one everything.
    let of = [("kind", "partial"), ("le", "0.0005")];
    assert_eq!(value("loden_reconcile_duration_seconds_bucket", &of), 0.0);
    assert_eq!(value("loden_reconcile_duration_seconds_bucket", &[of[0], ("le", "0.001")]), 1.0);
    assert_eq!(value("loden_reconcile_duration_seconds_bucket", &[("kind", "full"), ("le", "+Inf")]), 1.0);
    assert_eq!(value("loden_reconcile_duration_seconds_bucket", &[("kind", "full"), ("le", "5")]), 0.0);
    assert_eq!(value("loden_reconcile_duration_seconds_sum", &[("kind", "full")]), 9.0);
}

#[test]
fn an_agent_that_has_just_started_has_a_page() {
    let mut nothing = around();
    (nothing.process, nothing.dropped) = (None, Vec::new());
    let page = page(&Counts::default(), &Troubles::default(), &nothing);
    let (families, samples) = parse(&page).unwrap_or_else(|fault| panic!("{fault}\n{page}"));
    assert!(!families.contains_key("loden_lease_expiry_timestamp_seconds"), "there is no lease");
    assert!(samples.iter().any(|s| s.name == "loden_ready" && s.value == 0.0));
}

#[test]
fn the_reader_of_this_test_is_strict() {
    for bad in [
        "a 1",
        "# TYPE a gauge\na 1\n",
        "# HELP a b\n# TYPE a gauge\nb 1\n",
        "# HELP a b\n# TYPE a gauge\na 1\na 1\n",
        "# HELP a b\n# TYPE a gauge\na{x=\"1} 1\n",
        "# HELP a b\n# TYPE a gauge\na one\n",
        "# HELP a b\n# TYPE a histogram\na 1\n",
    ] {
        assert!(parse(bad).is_err(), "{bad:?}");
    }
}

/// Words that look like metrics in files for operators.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("loden_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_exist() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/monitoring");
    let known: BTreeSet<String> = FAMILIES
        .iter()
        .flat_map(|family| match family.kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"].map(|s| format!("{}{s}", family.name)).to_vec(),
            _ => vec![family.name.to_owned()],
        })
        .collect();
    let mut used = BTreeSet::new();
    for file in ["alerts.yaml", "dashboard.json"] {
        let text = fs::read_to_string(deploy.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        for name in named(&text) {
            assert!(known.contains(&name), "{file} names {name}, which there is not");
            used.insert(name);
        }
    }
    for family in FAMILIES.iter().filter(|family| family.name.starts_with("loden_")) {
        let shown = used.iter().any(|name| name.starts_with(family.name));
        assert!(shown, "{} is in no panel and no alert", family.name);
    }
}

#[test]
fn the_dashboard_is_one() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/monitoring/dashboard.json");
    let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert!(json["uid"].is_string() && json["title"].is_string());
    let panels = json["panels"].as_array().unwrap();
    assert!(panels.len() >= 10);
    let (mut ids, mut places) = (BTreeSet::new(), Vec::new());
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is taken");
        let at = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        let place = (at("x"), at("y"), at("x") + at("w"), at("y") + at("h"));
        assert!(place.2 <= 24, "{title} is too wide");
        for other in &places {
            let (a, b): (&(u64, u64, u64, u64), _) = (other, place);
            let apart = a.2 <= b.0 || b.2 <= a.0 || a.3 <= b.1 || b.3 <= a.1;
            assert!(apart, "{title} lies over another panel");
        }
        places.push(place);
        for target in panel["targets"].as_array().unwrap() {
            let expr = target["expr"].as_str().unwrap();
            let balanced = |open, close| expr.matches(open).count() == expr.matches(close).count();
            assert!(balanced('(', ')') && balanced('{', '}') && balanced('[', ']'), "{title}: {expr}");
        }
    }
}
