//! `reflow report`: the page and the numbers behind it, from statistics of real merges and of ones that never were.

use std::path::Path;

use half::bf16;
use predicates::str::contains;
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::checkpoint::{Checkpoint, family, write_family};
use crate::support::run::merge;
use crate::support::{files, reflow};

const FILE: &str = "reflow_statistics.json";

fn page(dir: &Path, out: &Path) -> String {
    reflow().arg("report").arg(dir).arg("--out").arg(out).assert().success();
    std::fs::read_to_string(out).unwrap()
}

fn figures(dir: &Path) -> Value {
    let output = reflow().arg("report").arg(dir).arg("--json").output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Demands that every tag is closed where it should be, nothing runs and nothing comes from elsewhere.
#[track_caller]
fn sound(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>\n") && page.ends_with("</html>\n"));
    let body = &page[page.find("</style>").unwrap()..];
    let mut open = vec!["html", "head", "style"];
    for part in body.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap();
        assert!(!text.contains('>'), "{part}");
        let name = tag.split([' ', '/']).find(|name| !name.is_empty()).unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{part}");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    for never in [
        "<script", "http:", "https:", "url(", "@import", "<iframe", "onload", "NaN", "inf%", ">inf",
    ] {
        assert!(!page.contains(never), "{never}");
    }
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f64> {
    let (.., bytes) = checkpoint.tensors.iter().find(|(n, ..)| n == name).unwrap();
    let values =
        bytes.chunks_exact(2).map(|b| bf16::from_bits(u16::from_le_bytes(b.try_into().unwrap())));
    values.map(|x| f64::from(x.to_f32())).collect()
}

#[test]
fn the_numbers_are_those_of_the_models() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let (base, experts) = family(3, Dtype::BF16, 21);
    write_family(dir, &(base.clone(), experts.clone()), &[1, 2]);
    let out = dir.join("out");
    merge(dir, 3, &out).args(["--statistics", "--keep", "0.3"]).assert().success();
    let found = figures(&out);
    let close = |got: &Value, plain: f64| {
        let got = got.as_f64().unwrap();
        assert!((got - plain).abs() <= 1e-8 * plain.abs(), "{got} {plain}");
    };
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let tau = |expert: &Checkpoint, name: &str| -> Vec<f64> {
        values(expert, name).iter().zip(values(&base, name)).map(|(x, y)| x - y).collect()
    };
    // One cell.
    let name = "model.layers.2.mlp.up_proj.weight";
    let stack = &found["stacks"][0];
    assert_eq!(stack["name"], "model.layers");
    let layer =
        stack["layers"].as_array().unwrap().iter().find(|layer| layer["first"] == 2).unwrap();
    let module =
        stack["modules"].as_array().unwrap().iter().position(|m| m == "mlp.up_proj").unwrap();
    let cell = &layer["modules"][module];
    assert_eq!((&cell["tensors"], &cell["elements"]), (&json!(1), &json!(1200)));
    close(&cell["base_norm"], norm(&values(&base, name)));
    let taus: Vec<Vec<f64>> = experts.iter().map(|expert| tau(expert, name)).collect();
    for (told, tau) in cell["experts"].as_array().unwrap().iter().zip(&taus) {
        close(&told["relative"], norm(tau) / norm(&values(&base, name)));
        close(&told["changed"], tau.iter().filter(|&&x| x != 0.0).count() as f64 / 1200.0);
    }
    let both = |k: &usize| taus.iter().any(|t| t[*k] > 0.0) && taus.iter().any(|t| t[*k] < 0.0);
    close(&cell["conflicts"], (0..1200).filter(both).count() as f64 / 1200.0);
    let cosine = |a: &[f64], b: &[f64]| {
        a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>() / (norm(a) * norm(b))
    };
    let pairs =
        cosine(&taus[0], &taus[1]) + cosine(&taus[0], &taus[2]) + cosine(&taus[1], &taus[2]);
    close(&cell["cosine"], pairs / 3.0);
    // All of it.
    let all = |of: &dyn Fn(&str) -> Vec<f64>| -> Vec<f64> {
        base.tensors.iter().flat_map(|(name, ..)| of(name)).collect()
    };
    let merged_bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let read = safetensors::SafeTensors::deserialize(&merged_bytes).unwrap();
    let of_merge = |name: &str| -> Vec<f64> {
        let view = read.tensor(name).unwrap();
        let stored = view
            .data()
            .chunks_exact(2)
            .map(|b| bf16::from_bits(u16::from_le_bytes(b.try_into().unwrap())));
        stored.map(|x| f64::from(x.to_f32())).collect()
    };
    let (whole, merged) = (all(&|name| values(&base, name)), all(&of_merge));
    for (i, expert) in experts.iter().enumerate() {
        let (tau, told) = (all(&|name| tau(expert, name)), &found["total"]["experts"][i]);
        close(&told["relative"], norm(&tau) / norm(&whole));
        let away: Vec<f64> =
            merged.iter().zip(all(&|name| values(expert, name))).map(|(x, y)| x - y).collect();
        close(&told["distance"], norm(&away));
        let with = merged.iter().zip(&whole).map(|(x, y)| x - y).collect::<Vec<f64>>();
        close(&told["cosine"], cosine(&tau, &with));
        close(&found["cosines"][i][3], cosine(&tau, &with));
        let zeros = tau.iter().filter(|&&x| x == 0.0).count();
        assert_eq!(found["magnitudes"][i]["zeros"], zeros);
        let kept = told["kept"].as_f64().unwrap();
        assert!((0.2..0.4).contains(&kept), "{kept}");
    }
    assert_eq!(found["total"]["tensors"], 9);
    assert_eq!(found["outside"].as_array().unwrap().len(), 4);
}

#[test]
fn the_page_is_whole_and_the_same_each_time_and_lies_beside_the_output() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    write_family(dir, &family(3, Dtype::BF16, 22), &[1]);
    let out = dir.join("out");
    merge(dir, 3, &out).arg("--statistics").assert().success();
    let before = files(&out);
    let html = page(&out, &dir.join("a.html"));
    sound(&html);
    for part in [
        "id=\"kept\"",
        "id=\"scores\"",
        "id=\"cosines\"",
        "expert2",
        "mlp.up_proj",
        "prefers-color-scheme:dark",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert_eq!(html, page(&out, &dir.join("b.html")));
    // Where it goes by itself, and what it replaces.
    let run = |args: &[&str]| reflow().current_dir(dir).arg("report").args(args).assert();
    run(&["out/"]).success().stdout("out.report.html\n");
    run(&["out"]).success();
    assert_eq!(std::fs::read_to_string(dir.join("out.report.html")).unwrap(), html);
    run(&["out", "--out", "-"]).success().stdout(html.clone());
    std::fs::write(dir.join("mine"), "mine").unwrap();
    run(&["out", "--out", "mine"]).code(5);
    assert_eq!(std::fs::read_to_string(dir.join("mine")).unwrap(), "mine");
    assert_eq!(files(&out), before);
    run(&["out", "--out", "nowhere/page.html"]).failure();
    run(&["out", "--json", "--out", "x"]).code(2);
    // A model without statistics, and no model.
    run(&["base"]).code(2).stderr(contains("reflow merge --statistics"));
    run(&["none"]).code(2);
    run(&["a.html"]).code(2);
}

#[test]
fn merges_of_every_kind_have_a_page() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let (base, experts) = family(2, Dtype::BF16, 23);
    write_family(dir, &(base.clone(), vec![experts[0].clone(), base]), &[1]);
    // One expert; one that is the base; no base; nothing in layers.
    let run = |args: &[&str], out: &str| {
        let mut command = reflow();
        command.current_dir(dir).args(["merge", "--statistics", "--out", out]).args(args);
        command.assert().success();
        let html = page(&dir.join(out), &dir.join("page.html"));
        sound(&html);
        html
    };
    let _page = run(&["--base", "base", "--expert", "expert1"], "one");
    let html = run(&["--base", "base", "--expert", "expert1", "--expert", "expert2"], "same");
    assert!(html.contains('\u{2013}'), "no cosine with nothing");
    let html =
        run(&["--method", "linear", "--expert", "expert1=1", "--expert", "expert2=1"], "linear");
    assert!(html.contains("There is no base") && !html.contains("id=\"kept\""));
    let few = ["--base", "base", "--expert", "expert1", "--include", "model.norm.weight"];
    let html = run(&few, "few");
    assert!(html.contains("Outside of layers") && !html.contains("model.layers"));
    let layered = ["--base", "base", "--expert", "expert1", "--include", "*layers*"];
    assert!(!run(&layered, "layered").contains("Outside of layers"));
}

/// Statistics as if a merge had made them.
fn write(dir: &Path, experts: &[&str], names: &[String]) {
    let n = experts.len();
    let pairs = (n + 1) * (n + 2) / 2;
    let rows = names.iter().enumerate().map(|(k, name)| {
        let magnitudes = json!({"largest": 0.5, "zeros": 2, "from": -3, "counts": [1, k % 7, 5 + 7 - k % 7]});
        let products: Vec<f64> = (0..pairs).map(|p| ((k + p) % 11) as f64 / 8.0).collect();
        json!({
            "name": name, "shape": [20], "elements": 15 + 5, "base": (k % 13) as f64, "products": products,
            "magnitudes": vec![json!({"largest": 0.5, "zeros": 2, "from": -3, "counts": [1, k % 7, 17 - k % 7]}); n + 1],
            "shared": k % 20, "conflicts": k % 9, "kept": vec![k % 20; n], "scores": vec![0.5; n],
            "_": magnitudes,
        })
    });
    let rows = rows.map(|mut row| {
        row.as_object_mut().unwrap().remove("_");
        row.to_string()
    });
    let rows: Vec<String> = rows.collect();
    let head = json!({
        "format": "reflow statistics 1", "reflow": "0", "plan": "", "method": "<i>pcb</i>", "base": "\"base\" & co",
        "experts": experts, "scores": true, "copied": 0, "least": -40, "bins": 48,
    });
    let head = head.as_object().unwrap().iter().map(|(key, value)| format!("\"{key}\":{value},\n"));
    let text =
        format!("{{\n{}\"tensors\":[\n{}\n]\n}}\n", head.collect::<String>(), rows.join(",\n"));
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join(FILE), text).unwrap();
}

#[test]
fn names_are_text() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("<b onload=x>&\"'");
    let names = [
        "</svg><script>alert(1)</script>",
        "model.layers.0.\"><img src=x>",
        "model.layers.1.a&b'",
        "\u{202e}\u{7}",
    ];
    write(&dir, &["<script>", "\"><!--", "''&lt;"], &names.map(str::to_owned));
    let html = page(&dir, &dir.join("page.html"));
    let marked: String = html.replace("onload=x", "");
    sound(&marked);
    assert!(
        html.contains("&lt;script&gt;")
            && html.contains("a&amp;b&#39;")
            && html.contains("&lt;b onload=x&gt;")
    );
    assert!(!html.contains('\u{202e}') && !html.contains('\u{7}'));
}

#[test]
fn the_page_does_not_grow_with_the_model() {
    let dir = TempDir::new().unwrap();
    let large = dir.path().join("large");
    let modules = [
        "a",
        "b",
        "c",
        "d.weight",
        "experts.3.w1.weight",
        "experts.10.w1.weight",
        "f",
        "g",
        "h",
        "i",
    ];
    let in_layer = |k: usize| modules.map(|module| format!("model.layers.{k}.{module}"));
    let names: Vec<String> = (0..80).flat_map(in_layer).chain(["head".to_owned()]).collect();
    let experts: Vec<String> = (0..16).map(|k| format!("expert number {k}")).collect();
    let experts: Vec<&str> = experts.iter().map(String::as_str).collect();
    write(&large, &experts, &names);
    let html = page(&large, &dir.path().join("page.html"));
    sound(&html);
    assert!(html.len() < 6_000_000, "{}", html.len());
    assert!(html.contains("experts.N.w1") && html.contains(">79<"));
    // Names without end: layers are taken together, modules and stacks left over.
    let wild = dir.path().join("wild");
    let names: Vec<String> = (0..6000)
        .map(|k| match k % 4 {
            0 => format!("deep.layers.{k}.m.weight"),
            1 => format!("wide.layers.0.m{k}.weight"),
            2 => format!("s{k}.0.m"),
            _ => format!("outside{k}"),
        })
        .collect();
    write(&wild, &["one", "two"], &names);
    let html = page(&wild, &dir.path().join("page.html"));
    sound(&html);
    assert!(html.len() < 4_000_000, "{}", html.len());
    assert!(
        html.contains("others")
            && html.contains("Neighbouring layers")
            && html.contains("in smaller stacks")
    );
    let found = figures(&wild);
    assert_eq!(found["total"]["tensors"], 6000);
    let layers: u64 = found["stacks"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|s| s["layers"].as_array().unwrap())
        .map(|layer| layer["all"]["tensors"].as_u64().unwrap())
        .sum();
    let outside: u64 =
        found["outside"].as_array().unwrap().iter().map(|t| t["tensors"].as_u64().unwrap()).sum();
    assert_eq!(layers + outside + found["hidden"].as_u64().unwrap(), 6000);
}

#[test]
fn damaged_statistics_are_refused() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &["a"], &["x".to_owned(), "y".to_owned()]);
    let path = dir.path().join(FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let run = || reflow().arg("report").arg(dir.path()).arg("--json").assert();
    run().success();
    let line = text.lines().position(|line| line.contains("\"y\"")).unwrap() + 1;
    for (from, to) in [
        ("\"y\"", "\"y"),
        (
            "\"name\":\"y\",\"shape\":[20],\"elements\":20",
            "\"name\":\"y\",\"shape\":[20],\"elements\":21",
        ),
    ] {
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        run().code(8).stderr(contains(format!("line {line} is not as it was written")));
    }
    std::fs::write(&path, &text[..text.len() - 2]).unwrap();
    run().code(8);
    std::fs::write(&path, "").unwrap();
    run().code(8);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    run().failure();
}
