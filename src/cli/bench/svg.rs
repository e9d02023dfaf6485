//! Plots, written by hand: bars for two workers side by side, lines for growth.

use super::figure::{Figure, Spread, short};

const OURS: &str = "#1f6feb";
const BARE: &str = "#9aa4b2";
const WIDTH: f64 = 760.0;
/// The text left of the bars.
const MARGIN: f64 = 270.0;
const ROW: f64 = 34.0;

/// Ours and the bare twin's, one pair of bars for each figure; a thin line spans the smallest and largest run.
pub(super) fn bars(title: &str, figures: &[&Figure]) -> String {
    let spreads =
        |figure: &Figure| figure.bare.into_iter().chain([figure.ours]).map(|s| s.max).fold(0.0, f64::max);
    let largest = figures.iter().map(|figure| spreads(figure)).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - MARGIN - 70.0) / largest;
    let mut body = String::new();
    for (row, figure) in figures.iter().enumerate() {
        let y = 44.0 + row as f64 * ROW;
        body.push_str(&text(MARGIN - 8.0, y + 17.0, "end", &figure.case));
        for (offset, colour, spread) in [(2.0, OURS, Some(figure.ours)), (15.0, BARE, figure.bare)] {
            if let Some(spread) = spread {
                body.push_str(&bar(y + offset, colour, spread, scale));
            }
        }
    }
    let unit = figures.first().map_or("", |figure| &*figure.unit);
    document(&format!("{title} ({unit})"), 52.0 + figures.len() as f64 * ROW, &body)
}

fn bar(y: f64, colour: &str, Spread { median, min, max }: Spread, scale: f64) -> String {
    let (width, from, to, middle) = (median * scale, MARGIN + min * scale, MARGIN + max * scale, y + 6.0);
    format!(
        "<rect x=\"{MARGIN}\" y=\"{y}\" width=\"{width:.1}\" height=\"12\" fill=\"{colour}\"/>\n\
         <line x1=\"{from:.1}\" y1=\"{middle}\" x2=\"{to:.1}\" y2=\"{middle}\" stroke=\"#24292f\"/>\n{}",
        text(to.max(MARGIN + width) + 5.0, y + 10.0, "start", &short(median))
    )
}

/// One panel for each series, both axes logarithmic.
pub(super) fn lines(title: &str, figures: &[&Figure]) -> String {
    let mut names: Vec<&str> = figures.iter().map(|figure| figure.case.as_str()).collect();
    names.dedup();
    let (panel_width, panel_height) = (WIDTH / 2.0, 190.0);
    let mut body = String::new();
    for (index, name) in names.iter().enumerate() {
        let series: Vec<&Figure> = figures.iter().filter(|figure| figure.case == *name).copied().collect();
        let (x, y) = ((index % 2) as f64 * panel_width, 36.0 + (index / 2) as f64 * panel_height);
        let unit = series.first().map_or("", |figure| &*figure.unit);
        body.push_str(&text(x + 40.0, y + 14.0, "start", &format!("{name} ({unit})")));
        body.push_str(&panel(&series, x + 40.0, y + 24.0, panel_width - 80.0, panel_height - 64.0));
    }
    document(title, 40.0 + names.len().div_ceil(2) as f64 * panel_height, &body)
}

fn panel(series: &[&Figure], left: f64, top: f64, width: f64, height: f64) -> String {
    let values = series.iter().flat_map(|figure| [Some(figure.ours), figure.bare]).flatten();
    let (low, high) = range(values.flat_map(|spread| [spread.min, spread.max]));
    let (first, last) = range(series.iter().filter_map(|figure| figure.at));
    let place = |at: f64, value: f64| {
        let x = left + width * (at.ln() - first.ln()) / (last.ln() - first.ln()).max(1e-9);
        (x, top + height * (1.0 - (value.ln() - low.ln()) / (high.ln() - low.ln()).max(1e-9)))
    };
    let mut body = format!(
        "<path d=\"M{left:.1} {top:.1}v{height:.1}h{width:.1}\" fill=\"none\" stroke=\"#d0d7de\"/>\n"
    );
    for colour in [BARE, OURS] {
        let spread = |figure: &Figure| if colour == OURS { Some(figure.ours) } else { figure.bare };
        let points: Vec<(f64, f64)> =
            series.iter().filter_map(|figure| Some(place(figure.at?, spread(figure)?.median))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        body.push_str(&format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
            path.join(" ")
        ));
    }
    for figure in series {
        let Some(at) = figure.at else { continue };
        let (x, y) = place(at, figure.ours.median);
        body.push_str(&text(x, y - 6.0, "middle", &short(figure.ours.median)));
        body.push_str(&text(x, top + height + 16.0, "middle", &at.to_string()));
    }
    body
}

/// From a little below the smallest to a little above the largest, for a logarithmic axis.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| *value > 0.0)
        .fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), value| (low.min(value), high.max(value)));
    (low * 0.8, high * 1.25)
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n")
}

fn document(title: &str, height: f64, body: &str) -> String {
    let legend = format!(
        "<rect x=\"{}\" y=\"14\" width=\"10\" height=\"10\" fill=\"{OURS}\"/>{}<rect x=\"{}\" y=\"14\" width=\"10\" \
         height=\"10\" fill=\"{BARE}\"/>{}",
        WIDTH - 150.0,
        text(WIDTH - 136.0, 23.0, "start", "ours"),
        WIDTH - 95.0,
        text(WIDTH - 81.0, 23.0, "start", "bare twin"),
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\" fill=\"#24292f\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{}{legend}\n{body}</svg>\n",
        text(12.0, 23.0, "start", title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_holds_every_figure_and_no_broken_number() {
        let figure = |case: &str, at| {
            let figure = Figure::new("W6", case, "ms", &[(2.0, Some(1.0)), (4.0, Some(3.0))], None).unwrap();
            Figure { at, ..figure }
        };
        let (first, second) = (figure("a & b", Some(1.0)), figure("a & b", Some(1_000.0)));
        for plot in [bars("bars", &[&first, &second]), lines("lines", &[&first, &second])] {
            assert!(
                plot.contains("a &amp; b") && plot.contains("3.00") && plot.ends_with("</svg>\n"),
                "{plot}"
            );
            assert!(!plot.contains("NaN") && !plot.contains("inf"), "{plot}");
        }
        assert!(!bars("nothing", &[]).contains("NaN"));
    }
}
