//! Makes what is handed out: images, bills of materials, rendered charts. `cargo xtask` runs it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use packaging::{Result, chart, image, sbom, share};

const USAGE: &str = "\
usage: loden-packaging image DIST [ARCH=DIR]...   write DIST/loden.tar and DIST/loden-cni.tar from programs
       loden-packaging sbom DIST                   write DIST/loden.cdx.json and DIST/loden-cni.cdx.json
       loden-packaging share PROGRAM DIR           write the program's manual and completions below DIR
       loden-packaging render CHART NAMESPACE [VALUES]...   print a chart as `helm template` does
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["image", dist, arches @ ..] => images(Path::new(dist), arches),
        ["sbom", dist] => boms(Path::new(dist)),
        ["share", program, dir] => share::write(Path::new(program), Path::new(dir))
            .map(|count| format!("{dir}: manual and completions, {count} files\n")),
        ["render", chart, namespace, values @ ..] => render(Path::new(chart), namespace, values),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("{error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) {
    use std::io::Write as _;
    // A reader that went away is no failure.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Without ARCH=DIR the programs in DIST are of this machine's architecture.
fn images(dist: &Path, arches: &[&str]) -> Result<String> {
    let mut sources = Vec::new();
    for pair in arches {
        let (arch, dir) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not ARCH=DIR"))?;
        sources.push((arch.to_owned(), PathBuf::from(dir)));
    }
    if sources.is_empty() {
        sources.push((image::this_architecture()?.to_owned(), dist.to_owned()));
    }
    let mut report = String::new();
    for kind in image::KINDS {
        let bom = sbom::of(kind.packages)?;
        let archive = image::build(kind, &sources, &bom, image::created()?, 9)?;
        let file = dist.join(format!("{}.tar", kind.name));
        std::fs::write(&file, &archive.bytes)
            .map_err(|error| format!("write {}: {error}", file.display()))?;
        report.push_str(&format!("{:10} {:>10} bytes  {}\n", kind.name, archive.bytes.len(), archive.digest));
        for (arch, compressed, unpacked) in &archive.sizes {
            report.push_str(&format!(
                "  {arch:8} {:5.2} MiB to pull, {:5.2} MiB unpacked\n",
                *compressed as f64 / 1048576.0,
                *unpacked as f64 / 1048576.0
            ));
        }
    }
    Ok(report)
}

fn boms(dist: &Path) -> Result<String> {
    let mut report = String::new();
    for kind in image::KINDS {
        let text = sbom::of(kind.packages)?;
        let file = dist.join(format!("{}.cdx.json", kind.name));
        std::fs::write(&file, &text).map_err(|error| format!("write {}: {error}", file.display()))?;
        report.push_str(&format!(
            "{} lists {} components\n",
            file.display(),
            text.matches("\"bom-ref\"").count()
        ));
    }
    Ok(report)
}

fn render(dir: &Path, namespace: &str, values: &[&str]) -> Result<String> {
    let values = values
        .iter()
        .map(|file| std::fs::read_to_string(file).map_err(|error| format!("read {file}: {error}").into()));
    chart::render(dir, namespace, &values.collect::<Result<Vec<_>>>()?)
}
