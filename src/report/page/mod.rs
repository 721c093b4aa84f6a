//! The page: HTML with its style and pictures inside, no scripts, nothing from elsewhere.
//!
//! Whatever comes from a model's name is escaped. The bytes depend on the figures alone.

mod charts;
mod heat;
mod palette;
mod sections;

use std::fmt::Write as _;

use super::{ExpertNumbers, Figures, Layer, Numbers, Stack};
use crate::human::count;
use crate::markup::escape;
use heat::{Cell, Heat, legend};
use palette::Scale;

/// Experts that have pictures and columns of their own.
const EXPERTS: usize = 16;
/// Cells in pictures of single experts, for each thing that is shown.
const CELLS: usize = 6000;
const STYLE: &str = include_str!("style.css");

/// A share, in percent.
fn percent(share: f64) -> String {
    format!("{} %", short(100.0 * share))
}

/// Two or three digits.
fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        0.01..0.0995 => format!("{x:.3}"),
        0.0995..9.95 => format!("{x:.2}"),
        9.95..99.5 => format!("{x:.1}"),
        99.5..10_000.0 => format!("{x:.0}"),
        _ => format!("{x:.1e}"),
    }
}

/// Something that an expert has in a tensor, or several.
#[derive(Clone, Copy)]
struct Measure {
    of: fn(&ExpertNumbers) -> Option<f64>,
    /// What it is called where numbers stand alone.
    unit: &'static str,
}

pub(super) fn render(figures: &Figures) -> String {
    let mut page = Page { figures, body: String::new(), sections: Vec::new() };
    page.experts();
    page.changes();
    page.outside();
    page.kept();
    page.conflicts();
    page.cosines();
    page.magnitudes();
    page.distances();
    page.notes();
    page.finish()
}

struct Page<'a> {
    figures: &'a Figures,
    body: String,
    sections: Vec<(&'static str, &'static str)>,
}

impl Page<'_> {
    /// Begins a section.
    fn section(&mut self, id: &'static str, title: &'static str, text: &str) {
        self.sections.push((id, title));
        self.add(&format!("<h2 id=\"{id}\">{title}</h2>\n<p>{text}</p>\n"));
    }

    fn add(&mut self, html: &str) {
        self.body.push_str(html);
    }

    fn based(&self) -> bool {
        self.figures.base.is_some()
    }

    /// What the differences are called.
    fn noun(&self) -> &'static str {
        if self.based() { "task vectors" } else { "values" }
    }

    /// The size of a change: relative to the base if there is one.
    fn size(&self) -> Measure {
        if self.based() {
            Measure { of: |it| it.relative.map(|x| 100.0 * x), unit: "% of the base's norm" }
        } else {
            Measure { of: |it| Some(it.norm), unit: "norm" }
        }
    }

    /// Pictures of a measure, layer by module: the mean over the experts, and each expert.
    fn per_expert(&mut self, measure: Measure, wide: bool) {
        let figures = self.figures;
        let n = figures.experts.len();
        let cells = figures.stacks.iter().map(|s| s.layers.len() * s.modules.len()).sum::<usize>();
        let room = CELLS / cells.max(1);
        let each = if n == 1 { 0 } else { n.min(EXPERTS).min(room) };
        let values = figures.stacks.iter().flat_map(|stack| &stack.layers).flat_map(|layer| {
            layer.modules.iter().flatten().flat_map(|numbers| {
                numbers.experts.iter().take(EXPERTS).flatten().filter_map(|it| (measure.of)(it))
            })
        });
        let scale = Scale::amounts(values, wide);
        for stack in &figures.stacks {
            let title =
                if n == 1 { escape(&figures.experts[0]) } else { "Mean of the experts".to_owned() };
            let caption = format!("{title}{}, {}", of_stack(figures, stack), measure.unit);
            let mean = |numbers: &Numbers| numbers.mean(measure.of);
            self.heat(stack, &caption, measure.unit, scale, &mean, true);
        }
        if each > 0 {
            let _infallible = writeln!(
                self.body,
                "<details{}><summary>Each expert</summary>\n<div class=\"many\">",
                if each <= 4 && cells <= 400 { " open" } else { "" }
            );
            for (expert, name) in figures.experts.iter().enumerate().take(each) {
                for stack in &figures.stacks {
                    let caption = format!("{}{}", escape(name), of_stack(figures, stack));
                    let of = |numbers: &Numbers| (measure.of)(numbers.experts[expert].as_ref()?);
                    self.heat(stack, &caption, measure.unit, scale, &of, false);
                }
            }
            self.add("</div></details>\n");
        }
        if n > 1 && each < n {
            let text = format!(
                "<p class=\"soft\">{each} of {n} experts have pictures of their own here; <code>--json</code> tells of all.</p>\n"
            );
            self.add(&text);
        }
    }

    /// A picture for each stack of something that all experts have together.
    fn one(&mut self, of: &dyn Fn(&Numbers) -> Option<f64>, unit: &str, signs: bool) {
        let figures = self.figures;
        let layers = figures.stacks.iter().flat_map(|stack| &stack.layers);
        let values = layers.flat_map(|layer| layer.modules.iter().flatten().filter_map(of));
        let scale = if signs { Scale::signs(values) } else { Scale::amounts(values, false) };
        for stack in &figures.stacks {
            let caption = format!("{unit}{}", of_stack(figures, stack));
            self.heat(stack, &caption, unit, scale, of, true);
        }
    }

    /// One picture, layer by module; the `whole` picture has a legend and tells more.
    fn heat(
        &mut self,
        stack: &Stack,
        caption: &str,
        unit: &str,
        scale: Scale,
        of: &dyn Fn(&Numbers) -> Option<f64>,
        whole: bool,
    ) {
        let cell = |numbers: &Numbers| Cell { value: of(numbers), note: note(numbers, unit) };
        let cells = stack.layers.iter().flat_map(|layer| &layer.modules);
        let cells = cells.map(|numbers| numbers.as_ref().map(cell)).collect();
        let _infallible =
            writeln!(self.body, "<figure tabindex=\"0\"><figcaption>{caption}</figcaption>");
        let heat = Heat {
            about: format!("{unit}, layer by module"),
            axis: "layer",
            hovers: whole,
            rows: stack.layers.iter().map(layer_name).collect(),
            columns: stack.modules.clone(),
            cells,
            scale,
            shown: &short,
        };
        heat.draw(&mut self.body);
        if whole {
            legend(scale, &short, &mut self.body);
        }
        self.add("</figure>\n");
    }

    fn row_name(&self, row: usize) -> String {
        self.figures.experts.get(row).cloned().unwrap_or_else(|| "the merge".to_owned())
    }

    fn finish(self) -> String {
        let Self { figures, body, sections } = self;
        let (name, total) = (escape(&figures.name), &figures.total);
        let mut tiles: Vec<(&str, String)> = vec![
            ("tensors merged", count(total.tensors)),
            ("parameters merged", count(total.elements)),
        ];
        if figures.copied > 0 {
            tiles.push(("tensors copied", count(figures.copied)));
        }
        if let Some(x) = total.merge_relative.filter(|_| figures.base.is_some()) {
            tiles.push(("the merge's change, of the base's norm", percent(x)));
        }
        if figures.experts.len() > 1 {
            tiles.push(("elements that two experts or more change", percent(total.shared)));
            tiles.push(("elements changed in both directions", percent(total.conflicts)));
            if let Some(x) = total.cosine {
                tiles.push(("mean cosine of two experts", format!("{x:.3}")));
            }
        }
        let tiles = joined(tiles.iter(), |(name, value)| {
            format!("<div><dt>{name}</dt><dd>{value}</dd></div>\n")
        });
        let nav = joined(sections.iter(), |(id, title)| format!("<a href=\"#{id}\">{title}</a>\n"));
        let base = figures.base.as_ref().map(|base| format!("base <b>{}</b>, ", escape(base)));
        let experts = match figures.experts.len() {
            1 => format!("expert <b>{}</b>", escape(&figures.experts[0])),
            n => format!("{n} experts"),
        };
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
             <title>{name} \u{2013} what the merge saw</title>\n<style>\n{STYLE}{}</style>\n</head>\n<body>\n<header>\n\
             <h1>{name}</h1>\n<p class=\"lead\">What the merge saw: {}{experts}, {}. Made by reflow {}.</p>\n\
             <nav aria-label=\"Contents\">\n{nav}</nav>\n</header>\n<main>\n<dl>\n{tiles}</dl>\n{body}</main>\n</body>\n</html>\n",
            palette::style(),
            base.unwrap_or_default(),
            escape(&figures.method),
            escape(&figures.reflow),
        )
    }
}

/// Texts one after another.
fn joined<T>(items: impl Iterator<Item = T>, text: impl Fn(T) -> String) -> String {
    items.map(text).collect::<Vec<_>>().concat()
}

/// Which stack a picture is of, if there are several.
fn of_stack(figures: &Figures, stack: &Stack) -> String {
    if figures.stacks.len() > 1 { format!(", {}", escape(&stack.name)) } else { String::new() }
}

fn layer_name(layer: &Layer) -> String {
    if layer.first == layer.last {
        layer.first.to_string()
    } else {
        format!("{}\u{2013}{}", layer.first, layer.last)
    }
}

/// What a cell is made of.
fn note(numbers: &Numbers, unit: &str) -> String {
    let tensors = if numbers.tensors == 1 {
        "1 tensor".to_owned()
    } else {
        format!("{} tensors", count(numbers.tensors))
    };
    format!(" {unit}; {tensors}, {} elements", count(numbers.elements))
}
