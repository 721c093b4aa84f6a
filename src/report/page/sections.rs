//! The sections of the page.

use std::fmt::Write as _;

use super::charts::{Bar, bars, histograms};
use super::heat::{Cell, Heat, legend};
use super::palette::Scale;
use super::{EXPERTS, Measure, Page, joined, layer_name, note, of_stack, percent, short};
use crate::human::count;
use crate::markup::{escape, shorten};
use crate::report::{ExpertNumbers, Numbers};

/// The end of a row's tag and its text; all of it only where a pointer rests if it is very long.
fn header(name: &str) -> String {
    const LONG: usize = 60;
    match name.chars().count() {
        0..=LONG => format!(">{}", escape(name)),
        _ => format!(" title=\"{}\">{}", escape(name), escape(&shorten(name, LONG))),
    }
}

impl Page<'_> {
    pub(super) fn experts(&mut self) {
        let scores = self.figures.total.experts.iter().flatten().any(|it| it.score.is_some());
        let kept = self.figures.total.experts.iter().flatten().any(|it| it.kept.is_some());
        let text = if self.based() {
            "How far each expert has moved from the base, what of that the merge took, and how near the merge came. \
             A task vector is an expert minus the base."
        } else {
            "There is no base in this merge, so the numbers are about the models themselves."
        };
        self.section("experts", "Experts", text);
        let mut head = vec!["expert", if self.based() { "size of its change" } else { "norm" }];
        head.push(if self.based() { "elements changed" } else { "elements not zero" });
        if kept {
            head.push("elements kept");
        }
        if scores {
            head.extend(["mean score of those", "share of all scores"]);
        }
        head.extend([
            "distance to the merge",
            "cosine with the merge",
            "largest change of an element",
        ]);
        let Measure { of, .. } = self.size();
        let mut rows = String::new();
        let size = |x: Option<f64>| match x {
            Some(x) if self.based() => format!("{} %", short(x)),
            Some(x) => short(x),
            None => "\u{2013}".to_owned(),
        };
        for (name, it) in self.figures.experts.iter().zip(&self.figures.total.experts) {
            let _infallible = write!(rows, "<tr><th scope=\"row\"{}</th>", header(name));
            let mut cell = |text: String| {
                let _infallible = write!(rows, "<td>{text}</td>");
            };
            let Some(it) = it else {
                (1..head.len()).for_each(|_| cell("\u{2013}".to_owned()));
                rows.push_str("</tr>\n");
                continue;
            };
            let share = |x: Option<f64>| x.map_or_else(|| "\u{2013}".to_owned(), percent);
            cell(size(of(it)));
            cell(percent(it.changed));
            if kept {
                cell(share(it.kept));
            }
            if scores {
                cell(it.score.map_or_else(|| "\u{2013}".to_owned(), short));
                cell(share(it.weight));
            }
            let distance = it.distance_relative.map(|x| 100.0 * x);
            cell(size(if self.based() { distance } else { Some(it.distance) }));
            cell(it.cosine.map_or_else(|| "\u{2013}".to_owned(), |x| format!("{x:.3}")));
            cell(short(it.largest.into()));
            rows.push_str("</tr>\n");
        }
        let head = joined(head.iter(), |title| format!("<th scope=\"col\">{title}</th>"));
        self.add(&format!(
            "<div class=\"table\" tabindex=\"0\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
        ));
        if self.based() {
            self.add(
                "<p class=\"soft\">Sizes and distances are relative to the norm of the base.</p>\n",
            );
        }
        if kept {
            let bar = |(name, it): (&String, &Option<ExpertNumbers>)| {
                let it = it.as_ref()?;
                let kept = it.kept.unwrap_or(0.0);
                let parts = vec![(it.changed, percent(it.changed)), (kept, percent(kept))];
                Some(Bar { label: name.clone(), parts })
            };
            let all = self.figures.experts.iter().zip(&self.figures.total.experts);
            let all: Vec<Bar> = all.filter_map(bar).take(4 * EXPERTS).collect();
            self.add(
                "<figure tabindex=\"0\"><figcaption>Share of all elements that each expert \
                 <span class=\"key b0\"></span>changes <span class=\"key b1\"></span>has kept in the merge</figcaption>\n",
            );
            bars("Elements changed and kept, for each expert", &all, &mut self.body);
            self.add("</figure>\n");
        }
    }

    pub(super) fn changes(&mut self) {
        let text = if self.based() {
            "The norm of the task vectors in percent of the norm of the base, layer by layer and module by module. Colours go by \
             powers where numbers lie far apart."
        } else {
            "The norm of the models, layer by layer and module by module."
        };
        self.section("changes", "Size of the changes", text);
        let size = self.size();
        self.per_expert(size, true);
    }

    pub(super) fn kept(&mut self) {
        let any = |of: fn(&ExpertNumbers) -> Option<f64>| {
            self.figures.total.experts.iter().flatten().any(|it| of(it).is_some())
        };
        if any(|it| it.kept) {
            let text = "The share of elements in which an expert has a part in the merge, in percent, after all that the method leaves out.";
            self.section("kept", "What was kept", text);
            self.per_expert(Measure { of: |it| it.kept.map(|x| 100.0 * x), unit: "% kept" }, false);
        }
        if any(|it| it.score) {
            let text = "The mean score of the elements that are kept: how strong an expert is where it has a part.";
            self.section("scores", "Scores", text);
            self.per_expert(Measure { of: |it| it.score, unit: "mean score" }, false);
        }
    }

    pub(super) fn conflicts(&mut self) {
        if self.figures.experts.len() < 2 {
            return;
        }
        let text = "The share of elements that experts change in opposite directions, in percent of all elements.";
        self.section("conflicts", "Conflicts of sign", text);
        let of = |numbers: &Numbers| Some(100.0 * numbers.conflicts);
        self.one(&of, "% in conflict", false);
    }

    pub(super) fn cosines(&mut self) {
        let n = self.figures.experts.len();
        let text = format!(
            "The cosine of the angle between {}: 1 for the same direction, 0 for none in common, below 0 for opposite ones. The last row is the merge.",
            self.noun()
        );
        self.section("cosines", "Directions", &text);
        // The merge is last and always shown.
        let shown: Vec<usize> = (0..n.min(EXPERTS)).chain([n]).collect();
        let labels: Vec<String> = shown.iter().map(|&k| self.row_name(k)).collect();
        let cells: Vec<Option<Cell>> = shown
            .iter()
            .flat_map(|&a| shown.iter().map(move |&b| (a, b)))
            .map(|(a, b)| Some(Cell { value: self.figures.cosines[a][b], note: String::new() }))
            .collect();
        let scale = Scale::signs([1.0].into_iter());
        let shown = |x: f64| format!("{x:.3}").replace("-0.000", "0.000");
        self.add("<figure tabindex=\"0\">");
        let heat = Heat {
            about: "Cosines of all pairs".to_owned(),
            axis: "",
            hovers: true,
            rows: labels.clone(),
            columns: labels,
            cells,
            scale,
            shown: &shown,
        };
        heat.draw(&mut self.body);
        legend(scale, &|x| format!("{x:.1}"), &mut self.body);
        self.add("</figure>\n");
        if n > 1 {
            self.add(&format!(
                "<p>The mean cosine of the {} of two experts, by layer and module:</p>\n",
                self.noun()
            ));
            self.one(&|numbers: &Numbers| numbers.cosine, "mean cosine", true);
        }
    }

    pub(super) fn magnitudes(&mut self) {
        let text = format!(
            "How large the elements of the {} are: the share of elements between powers of two. The last is the merge's.",
            self.noun()
        );
        self.section("magnitudes", "Magnitudes", &text);
        let n = self.figures.experts.len();
        let shown = (0..n.min(EXPERTS)).chain([n]);
        let named: Vec<_> =
            shown.map(|k| (self.row_name(k), &self.figures.magnitudes[k])).collect();
        self.add("<figure tabindex=\"0\" class=\"many\">");
        histograms(&named, &mut self.body);
        self.add("</figure>\n");
    }

    pub(super) fn distances(&mut self) {
        let text = if self.based() {
            "How far the merge, as it is stored, lies from the base and from each expert, in percent of the norm of the base."
        } else {
            "How far the merge, as it is stored, lies from each expert."
        };
        self.section("distances", "Distance of the merge to its sources", text);
        let based = self.based();
        let distance = move |it: &ExpertNumbers| {
            if based { it.distance_relative.map(|x| 100.0 * x) } else { Some(it.distance) }
        };
        let sources = |numbers: &Numbers| -> Vec<Option<Option<f64>>> {
            let base = based.then(|| Some(numbers.merge_relative.map(|x| 100.0 * x)));
            let experts = numbers.experts.iter().map(|it| it.as_ref().map(distance));
            base.into_iter().chain(experts).collect()
        };
        let names = self.figures.base.iter().map(|base| format!("base: {base}"));
        let names: Vec<String> = names.chain(self.figures.experts.iter().cloned()).collect();
        let end = if based { " %" } else { "" };
        let all = sources(&self.figures.total);
        let bar = |(name, value): (&String, &Option<Option<f64>>)| {
            let value = (*value)??;
            Some(Bar {
                label: name.clone(),
                parts: vec![(value, format!("{}{end}", short(value)))],
            })
        };
        let listed: Vec<Bar> = names.iter().zip(&all).filter_map(bar).take(4 * EXPERTS).collect();
        self.add("<figure tabindex=\"0\"><figcaption>In all</figcaption>\n");
        bars("Distance of the merge to each source", &listed, &mut self.body);
        self.add("</figure>\n");
        let columns: Vec<String> = names.into_iter().take(EXPERTS + 1).collect();
        for stack in &self.figures.stacks {
            let cells: Vec<Option<Cell>> = (stack.layers.iter())
                .flat_map(|layer| sources(&layer.all).into_iter().take(columns.len()))
                .map(|value| value.map(|value| Cell { value, note: end.to_owned() }))
                .collect();
            let scale = Scale::amounts(Heat::values(&cells), true);
            let caption = format!("Layer by layer{}", of_stack(self.figures, stack));
            let _infallible =
                writeln!(self.body, "<figure tabindex=\"0\"><figcaption>{caption}</figcaption>");
            let heat = Heat {
                about: "Distance of the merge to each source, layer by layer".to_owned(),
                axis: "layer",
                hovers: true,
                rows: stack.layers.iter().map(layer_name).collect(),
                columns: columns.clone(),
                cells,
                scale,
                shown: &short,
            };
            heat.draw(&mut self.body);
            legend(scale, &short, &mut self.body);
            self.add("</figure>\n");
        }
    }

    pub(super) fn outside(&mut self) {
        if self.figures.outside.is_empty() {
            return;
        }
        let Measure { of, unit } = self.size();
        self.add("<h3>Outside of layers</h3>\n");
        let n = self.figures.experts.len().min(EXPERTS);
        let cells: Vec<Option<Cell>> = (self.figures.outside.iter())
            .flat_map(|tensor| {
                tensor.numbers.experts.iter().take(n).map(|it| {
                    it.as_ref().map(|it| Cell { value: of(it), note: note(&tensor.numbers, unit) })
                })
            })
            .collect();
        let scale = Scale::amounts(Heat::values(&cells), true);
        self.add("<figure tabindex=\"0\">");
        let heat = Heat {
            about: "Size of the changes outside of layers".to_owned(),
            axis: "tensor",
            hovers: true,
            rows: self.figures.outside.iter().map(|tensor| tensor.name.clone()).collect(),
            columns: self.figures.experts.iter().take(n).cloned().collect(),
            cells,
            scale,
            shown: &short,
        };
        heat.draw(&mut self.body);
        legend(scale, &short, &mut self.body);
        self.add("</figure>\n");
    }

    pub(super) fn notes(&mut self) {
        let figures = self.figures;
        let mut notes = String::new();
        let total = &figures.total;
        if total.nonfinite > 0 {
            let _infallible = writeln!(
                notes,
                "<p>{} elements are NaN or infinite somewhere; they count as zero here.</p>",
                count(total.nonfinite)
            );
        }
        if figures.hidden > 0 {
            let _infallible = writeln!(
                notes,
                "<p>{} tensors in smaller stacks of layers have no picture; the totals hold them.</p>",
                figures.hidden
            );
        }
        let folded =
            figures.stacks.iter().flat_map(|stack| &stack.layers).any(|l| l.first != l.last);
        if folded {
            notes.push_str(
                "<p>Neighbouring layers are taken together where there are very many.</p>",
            );
        }
        let _infallible = writeln!(
            notes,
            "<p>All numbers come from the merge's own passes, tensor by tensor, and lie in <code>reflow_statistics.json</code> beside the model; \
             <code>reflow report --json</code> prints what is shown here. Numbers of several tensors are those of all their elements together; mean cosines \
             give each tensor the weight of its elements. A dash stands where something would be relative to nothing.</p>"
        );
        self.add(&format!("<footer>{notes}</footer>\n"));
    }
}
