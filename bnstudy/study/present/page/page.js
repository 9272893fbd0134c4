"use strict";

function bytesOf(base64) {
  const letters = atob(base64);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = letters.charCodeAt(at);
  return bytes;
}

/** Unpack the script of Plotly, which is embedded as a gzip file in base64, and run it. */
async function loadPlotly() {
  const packed = bytesOf(document.getElementById("plotly").textContent);
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
}

// Browsers before 2023 have no DecompressionStream; they show the figures' captions and numbers alone.
const plotly = loadPlotly().catch(console.warn);

// The page's data; its fields are described where they are made, in embedded.py.
const data = JSON.parse(document.getElementById("data").textContent);

const TIGHT = { l: 56, r: 12, t: 12, b: 40 };
const MARKERS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"];
const DASHES = { train: "dot", validation: "dash", test: "solid" };

function decoded(text) {
  return text === undefined ? null : new Float32Array(bytesOf(text).buffer);
}

const means = decoded(data.values.mean);
const spreads = decoded(data.values.sd);
const counts = decoded(data.values.n);
const effects = mapped(data.effects.fields, decoded);
const curves = mapped(data.curves, decoded);
const stepMeans = data.steps ? mapped(data.steps.fields, decoded) : {};
const stepCurves = data.steps ? mapped(data.steps.curves, decoded) : {};
const [embeddingX, embeddingY, embeddingLabels] =
  [data.embeddings.x, data.embeddings.y, data.embeddings.labels].map(decoded);
const last = "last";

function mapped(object, change) {
  return Object.fromEntries(Object.entries(object).map(([name, value]) => [name, change(value)]));
}

// Plotly interprets tags in texts, so names are escaped.
const plain = (text) =>
  String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const formatted = (value) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value)) return String(value).replace("-", "−");
  return String(Number(value.toPrecision(4))).replace("-", "−");
};

/** Format a p-value as the verdict and the tables do. */
const formatP = (p) => formatted(Number(p.toPrecision(3)));

const distinct = (values) => [...new Set(values)];

const labelOf = (metric) => data.labels[metric] ?? [metric.replaceAll("_", " "), null, null];
const words = (metric) => labelOf(metric)[0];
const layerInWords = (place) => place.split(" / ").map((name) =>
  (/^\d/.test(name) ? `layer ${name}` : name).replace(/\bblock0*(\d+)\b/g, "block $1"),
).join(" / ");

/** Return the range of a metric's values, or of differences between them. */
function rangeOf(metric, isDifference = false) {
  const [low, high] = [labelOf(metric)[1] ?? -Infinity, labelOf(metric)[2] ?? Infinity];
  return isDifference ? [low - high, high - low] : [low, high];
}

// ---- Selection ----------------------------------------------------------------------------

const controls = [...document.querySelectorAll("select[data-choice]")];

const controlOf = (name) => controls.find((control) => control.dataset.choice === name);

/** Return the selected value of a control; undefined if the page does not have it. */
const chosen = (name) => controlOf(name)?.value;

const AXES = data.axes.map((_, number) => `axis${number}`);

/** Return whether a control selects something else than it does at first. */
function isActive(control) {
  const first = [...control.options].find((option) => option.defaultSelected) ?? control.options[0];
  return control.value !== first?.value;
}

const keyNumbers = new Map(
  data.keys.map((key, number) =>
    [JSON.stringify([key.split, key.metric, key.layers, key.place]), number]),
);

// Number of layers of each network at the selected site and point of the axes. 0 if it differs between
// networks; values are then at relative depths.
let layersShown = 0;

function keyNumberOf(split, metric, place) {
  const layers = place === data.model ? 0 : layersShown;
  return keyNumbers.get(JSON.stringify([split, metric, layers, place]));
}

function countLayers() {
  const counts = shownGroups({ withSeed: false }).map((group) => group.layers[chosen("site")]);
  const different = distinct(counts.filter((count) => count > 0));
  return different.length === 1 ? different[0] : 0;
}

/** Return whether the filters select a seed and point; those of the axes in `free` are ignored. */
function isShown({ seed, point }, { free = [], withSeed = true } = {}) {
  const chosenSeed = (withSeed && chosen("seed")) || "all";
  if (chosenSeed !== "all" && chosenSeed !== String(seed)) return false;
  return data.axes.every((axis, number) =>
    free.includes(axis.name) || ["all", point[number]].includes(chosen(`axis${number}`)));
}

/** Select the groups of runs that the filters select. */
const shownGroups = (options) => data.groups.filter((group) => isShown(group, options));

/** Find the index of the selected epoch for a group; -1 if the page does not contain it. */
function epochOf(group) {
  const epoch = chosen("epoch");
  return data.epochs.indexOf(epoch === last ? group.last_epoch : Number(epoch));
}

/** Compute mean and standard deviation over the runs of some groups; n runs have a value. */
function pooled(groups, key, epochAt = epochOf) {
  let n = 0;
  let sum = 0;
  const parts = [];
  for (const group of groups) {
    const epoch = epochAt(group);
    if (epoch < 0 || key === undefined) continue;
    const at = (group.index * data.epochs.length + epoch) * data.keys.length + key;
    if (!Number.isFinite(means[at])) continue;
    const part = { n: counts ? counts[at] : 1, mean: means[at], sd: spreads ? spreads[at] : 0 };
    n += part.n;
    sum += part.n * part.mean;
    parts.push(part);
  }
  const mean = sum / n;
  let squares = 0;
  for (const part of parts) {
    squares += (part.n - 1) * (part.sd || 0) ** 2 + part.n * (part.mean - mean) ** 2;
  }
  const sd = n > 1 ? Math.sqrt(squares / (n - 1)) : NaN;
  return withSpread({ n, undefined: runsIn(groups) - n, mean: n ? mean : NaN, sd });
}

const withSpread = (point) => ({ ...point, low: point.mean - point.sd, high: point.mean + point.sd });

/** Make an axis of epochs, with integer ticks. */
const epochAxis = () =>
  axis("epoch (0: before training)",
    { zeroline: false, ...(Math.max(...data.epochs) < 10 ? { dtick: 1 } : {}) });

/** List the places of a metric in layers, in order. */
function placesOf(split, metric) {
  return data.keys
    .filter((key) => key.split === split && key.metric === metric && key.site === chosen("site")
      && key.layers === layersShown)
    .sort((a, b) => a.place_index - b.place_index)
    .map((key) => key.place);
}

/** Find the effect of the pairs at the selected point of the axes. */
function effectOf(treatment, key) {
  const point = data.axes.map((_, number) => {
    const value = chosen(`axis${number}`);
    return value === "all" ? null : value;
  });
  const at = data.effects.points.findIndex((candidate) =>
    candidate.every((value, number) => value === point[number]),
  );
  if (at < 0 || key === undefined) return null;
  const row = (treatment - 1) * data.effects.points.length + at;
  const effect = mapped(effects, (field) => field[row * data.keys.length + key]);
  return effect.n > 0 ? effect : null;
}

const comparedTreatments = () => data.treatments.map((name, number) => ({ name, number })).slice(1);

function ofTreatment(groups, number) {
  return groups.filter((group) => group.treatment === number);
}

const runsIn = (groups) => groups.reduce((sum, group) => sum + group.n, 0);

const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** Describe the number of runs of each treatment, and how many of them diverged. */
function describeCounts(groups) {
  const counts = data.treatments.map((_, number) => runsIn(ofTreatment(groups, number)));
  const all = distinct(counts).length === 1
    ? `${counted(counts[0], "run")} each`
    : data.treatments.map((name, at) => `${counted(counts[at], "run")} of ${name}`).join(", ");
  const diverged = data.treatments.flatMap((name, number) => {
    const count = ofTreatment(groups, number).reduce((sum, group) => sum + group.diverged, 0);
    return count ? [`${count} of ${name} diverged`] : [];
  });
  return diverged.length ? `${all} (${diverged.join(", ")})` : all;
}

/** Describe the treatments of which some runs have no value. */
function describeMissing(pointsOf) {
  const fewer = data.treatments.flatMap((name, number) => {
    const some = pointsOf[number].filter((point) => point.undefined > 0);
    const least = Math.min(...some.map((point) => point.n));
    const point = some.find((candidate) => candidate.n === least);
    return point ? [`${least} of ${least + point.undefined} with ${name}`] : [];
  });
  if (!fewer.length) return "";
  return ` Some runs have no value. At the point with the fewest values: ${fewer.join(", ")}.`;
}

/** Describe the consequences of few pairs, and how many more an exact test needs. */
function describeFewPairs(counts) {
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  const [fewest, enough] = [data.min_pairs, data.min_pairs_to_flip];
  if (!counts.length || least >= enough) return "";
  const student = "intervals and p-values come from Student's t-test, which assumes normally " +
    "distributed differences";
  if (least < most) {
    return ` Where n is below ${enough}, ${student}. Where n is below ${fewest}, nothing is tested.`;
  }
  return ` With only ${counted(least, "pair")}, ` +
    (least < fewest ? "values are shown but not tested" : student) +
    `. An exact test needs at least ${enough} pairs, ${enough - least} more.`;
}

/** Describe the selected filters. */
function describeFilters({ withEpoch = true, withSeed = true, free = [] } = {}) {
  const parts = data.axes.flatMap((axis, number) => {
    const value = chosen(`axis${number}`);
    return value === "all" || free.includes(axis.name) ? [] : [`${axis.label} ${value}`];
  });
  const seed = chosen("seed");
  if (withSeed && seed && seed !== "all") parts.push(`seed ${seed}`);
  const epoch = chosen("epoch");
  if (withEpoch) parts.push(epoch === last ? "after the last epoch" : `epoch ${epoch}`);
  return parts.join(", ");
}

// ---- Appearance -------------------------------------------------------------------------------------

const property = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function looks(number) {
  const colours = property("--series").split(" ");
  return { colour: colours[number % colours.length], symbol: MARKERS[number % MARKERS.length] };
}

const translucent = (colour, share) =>
  `rgba(${[1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)).join()},${share})`;

function axis(title, extra = {}) {
  return {
    title: { text: plain(title), standoff: 8 },
    gridcolor: property("--line"),
    zerolinecolor: property("--muted"),
    linecolor: property("--line"),
    automargin: true,
    ...extra,
  };
}

function layout(extra) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: property("--text"), family: "system-ui, sans-serif", size: 13 },
    margin: TIGHT,
    height: 340,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    ...extra,
  };
}

/** Describe the number of runs or pairs with a value, and without. */
const describeSize = ({ n, undefined: left }) =>
  n === undefined ? "" : `n = ${formatted(n)}${left ? `, ${formatted(left)} without a value` : ""}`;

function line(number, name, x, points, extra = {}) {
  const { colour, symbol } = looks(number);
  return {
    type: "scatter",
    mode: "lines+markers",
    name: plain(name),
    x,
    y: points.map((point) => point.mean),
    text: points.map(describeSize),
    hovertemplate: "%{x}: %{y:.4g}<br>%{text}",
    line: { color: colour, width: 2 },
    marker: { color: colour, symbol, size: 8 },
    ...extra,
  };
}

/** Cut the ends of points' bars and bands to a range; ends that are not known are NaN. */
const cut = (points, [lowest, highest]) => points.map((point) => ({
  ...point, low: Math.max(point.low, lowest), high: Math.min(point.high, highest),
}));

/** Add bars to points, within a range. */
function withBars(trace, points, range) {
  const size = (value) => (Number.isFinite(value) ? Math.max(value, 0) : 0);
  return {
    ...trace,
    error_y: {
      type: "data",
      symmetric: false,
      array: cut(points, range).map((point) => size(point.high - point.mean)),
      arrayminus: cut(points, range).map((point) => size(point.mean - point.low)),
      color: trace.line.color,
      thickness: 1.5,
      width: 4,
    },
  };
}

/** Draw points with a line and a band, within a range. */
function lineWithBand(number, name, x, points, range, extra = {}) {
  const known = cut(points, range).map((point, at) => ({ ...point, x: x[at] }))
    .filter((point) => Number.isFinite(point.low + point.high));
  const back = [...known].reverse();
  return [line(number, name, x, points, extra), {
    type: "scatter",
    mode: "lines",
    x: [...known, ...back].map((point) => point.x),
    y: [...known.map((point) => point.high), ...back.map((point) => point.low)],
    fill: "toself",
    fillcolor: translucent(looks(number).colour, 0.15),
    line: { width: 0 },
    hoverinfo: "skip",
    showlegend: false,
  }];
}

// ---- Figures: each returns traces, a layout, a caption, and its numbers as rows of a table -------

const directionOf = (metric) =>
  ({ higher: " (higher is better)", lower: " (lower is better)" })[data.directions[metric]] || "";

const DODGE = 0.08; // largest distance of the treatments' points, in layers

/** Draw points with bars over the layers, those of the treatments side by side. */
function overLayers(places, series, range, extra = {}) {
  const step = Math.min(DODGE, 0.7 / data.treatments.length);
  return series.map(({ name, number, points }) => {
    const x = points.map((_, at) => at + step * (number - (data.treatments.length - 1) / 2));
    const hover = {
      customdata: places.map((place) => plain(layerInWords(place))),
      hovertemplate: "%{customdata}: %{y:.4g}<br>%{text}",
    };
    return withBars(line(number, name, x, points, { ...hover, ...extra }), points, range);
  });
}

/** Make an axis of layers for dodged points. */
const layerAxis = (places) => axis("layer", {
  tickmode: "array", tickvals: places.map((_, at) => at),
  ticktext: places.map((place) => plain(layerInWords(place))),
  range: [-0.5, places.length - 0.5], zeroline: false,
});

const MEANS = ["n", "mean", "standard deviation"];
const meanOf = (point) => [point.n, point.mean, point.sd];
const DIFFERENCES = ["n", "pairs without a value", "difference", "low", "high"];
const differenceOf = (point) =>
  [point.n, point.undefined, point.difference, point.low, point.high];
const asPoint = (effect) => ({ ...effect, mean: effect.difference });

/** Describe bars or bands of standard deviations, if any mean has one. */
const describeSpread = (marks, series) =>
  series.some(({ points }) => points.some((point) => Number.isFinite(point.sd)))
    ? `${marks} are ± 1 standard deviation, within the range of the metric`
    : `there are no ${marks}, because no mean is over several runs`;

function levels(metric, scale = {}) {
  const split = chosen("split");
  const places = placesOf(split, metric);
  const groups = shownGroups();
  const series = data.treatments.map((name, number) => ({
    name, number, points: places.map((place) =>
      pooled(ofTreatment(groups, number), keyNumberOf(split, metric, place))),
  }));
  return {
    traces: overLayers(places, series, rangeOf(metric)),
    layout: layout({ xaxis: layerAxis(places), yaxis: axis(words(metric), scale) }),
    caption:
      `${words(metric)}${directionOf(metric)} per layer, ${split} split, ${describeFilters()}. ` +
      `Points are means over ${describeCounts(groups)}; ${describeSpread("bars", series)}.` +
      describeMissing(series.map(({ points }) => points)),
    columns: ["norm", "layer", ...MEANS],
    rows: series.flatMap(({ name, points }) =>
      points.map((point, at) => [name, places[at], ...meanOf(point)])),
  };
}

/** Draw rank or orthogonality gap of the layers before training. */
function beforeTraining() {
  const [metric, split] = [chosen("initial"), chosen("split")];
  const of = data.initial.filter((row) => row.metric === metric && row.split === split)
    .sort((a, b) => a.place_index - b.place_index);
  const places = distinct(of.map((row) => row.place));
  const series = data.treatments.map((name, number) => ({
    name, number, points: places.map((place) => withSpread(
      of.find((row) => row.treatment === name && row.place === place) ?? { mean: NaN })),
  }));
  return {
    traces: overLayers(places, series, rangeOf(metric)),
    layout: layout({ xaxis: layerAxis(places), yaxis: axis(words(metric)) }),
    caption: `${words(metric)} per layer before training, ${split} split. Points are means over all ` +
      `runs; ${describeSpread("bars", series)}.`,
    ignores: [...AXES, "seed", "epoch"],
    columns: ["norm", "layer", ...MEANS],
    rows: series.flatMap(({ name, points }) =>
      points.map((point, at) => [name, places[at], ...meanOf(point)])),
  };
}

/** Make a title: the number of layers in which a single treatment differs or, for several, a question. */
function titleOf(series) {
  if (series.length !== 1) return `Where do norms differ from ${data.baseline}?`;
  const [{ name, points }] = series;
  const all = counted(points.length, layersShown > 0 ? "layer" : "relative depth");
  const at = layersShown > 0 ? "in" : "at";
  if (!points.some((point) => Number.isFinite(point.low))) return `${name}: not tested ${at} ${all}`;
  const [higher, lower] =
    [points.filter((point) => point.low > 0), points.filter((point) => point.high < 0)];
  const found = [["higher", higher.length], ["lower", lower.length]]
    .filter(([, count]) => count).map(([direction, count]) => `${direction} ${at} ${count}`);
  return found.length
    ? `${name}: ${found.join(" and ")} of ${all}` : `${name}: no significant difference ${at} ${all}`;
}

function difference(metric) {
  const split = chosen("split");
  const places = placesOf(split, metric);
  const series = comparedTreatments().map(({ name, number }) => ({
    name, number, points: places.map((place) =>
      asPoint(effectOf(number, keyNumberOf(split, metric, place)) || {})),
  }));
  const points = series.flatMap((each) => each.points);
  const n = points.map((point) => point.n).filter(Boolean);
  return {
    title: titleOf(series),
    traces: overLayers(places, series, rangeOf(metric, true), { mode: "markers" }),
    layout: layout({
      xaxis: layerAxis(places),
      yaxis: axis(`difference to ${data.baseline}`, { zeroline: true }),
    }),
    caption:
      `Paired difference in ${words(metric)} to ${data.baseline}, ${split} split, ` +
      `${describeFilters({ withEpoch: false, withSeed: false }) || "all pairs"}, after the last ` +
      `epoch, over all seeds, n = ${n.length ? distinct(n).join(", ") : 0}. ` +
      (points.some((point) => Number.isFinite(point.low))
        ? "Bars are 95 % confidence intervals." : "There are no intervals.") +
      describeFewPairs(n),
    ignores: ["seed", "epoch"],
    columns: ["norm", "layer", ...DIFFERENCES, "p", "adjusted p", "Cohen's d", "rank-biserial"],
    rows: series.flatMap(({ name, points }) => points.map((point, at) =>
      [name, places[at], ...differenceOf(point), point.p, point.p_adjusted, point.cohens_d,
        point.rank_biserial])),
  };
}

/** Return the colours of differences, which are red where values are larger. */
const differenceColours = () =>
  ["--low", "--middle", "--high"].map((name, at) => [at / 2, property(name)]);

function allEffects() {
  const split = chosen("split");
  const treatment = Number(chosen("treatment") || 1);
  const size = chosen("size");
  // In the order of the records, in which the metrics of a family are neighbours.
  const order = Object.keys(data.directions);
  const metrics = distinct(
    data.keys
      .filter((key) => key.split === split && key.site === chosen("site"))
      .map((key) => key.metric),
  ).sort((a, b) => order.indexOf(a) - order.indexOf(b));
  const places = distinct(metrics.flatMap((metric) => placesOf(split, metric)));
  const rows = [];
  const found = metrics.map((metric) =>
    places.map((place) => {
      const effect = effectOf(treatment, keyNumberOf(split, metric, place));
      if (effect) {
        rows.push([metric, place, effect.n, effect[size], effect.difference, effect.low,
          effect.high, effect.p, effect.p_adjusted]);
      }
      return effect;
    }),
  );
  const limit = size === "cohens_d" ? 3 : 1;
  const arrows = { higher: "%s ↑", lower: "%s ↓" };
  const isNarrow = innerWidth < 720;
  const folded = (text) => (isNarrow ? text.replace(/(.{12}\S*) /g, "$1<br>") : text);
  const names = metrics.map((metric) => folded(
    (arrows[data.directions[metric]] || "%s").replace("%s", plain(words(metric)))));
  const x = places.map((place) => plain(layerInWords(place)));
  return {
    title: `Where does ${data.treatments[treatment]} differ from ${data.baseline}?`,
    traces: [
      {
        type: "heatmap",
        x,
        y: names,
        z: found.map((row) => row.map((effect) => (effect ? effect[size] : NaN))),
        customdata: found.map((row) =>
          row.map((effect) => (effect ? formatted(effect[size]) : ""))),
        text: found.map((row) =>
          row.map((effect) =>
            effect
              ? `difference ${formatted(effect.difference)} ` +
                `[${formatted(effect.low)}, ${formatted(effect.high)}]<br>` +
                `p = ${formatP(effect.p)}, adjusted p = ${formatP(effect.p_adjusted)}, ` +
                describeSize(effect)
              : "",
          ),
        ),
        hovertemplate: "%{y}, %{x}<br>%{customdata}<br>%{text}<extra></extra>",
        zmin: -limit,
        zmax: limit,
        colorscale: differenceColours(),
        colorbar: { thickness: 12, tickvals: [-limit, 0, limit], len: 0.9,
          title: { text: isNarrow ? "" : "smaller ← → larger", side: "right" } },
        hoverongaps: false,
        xgap: 1,
        ygap: 1,
      },
    ],
    layout: layout({
      annotations: found.flatMap((row, at) => row.flatMap((effect, place) =>
        effect && effect.p_adjusted <= 0.05
          ? [{ x: x[place], y: names[at], text: "✱", showarrow: false,
              font: { size: 15,
                color: Math.abs(effect[size]) > limit / 2 ? "#fff" : property("--text") } }] : [])),
      height: 150 + (isNarrow ? 48 : 24) * metrics.length,
      xaxis: axis("", { type: "category" }),
      yaxis: axis("", { type: "category", autorange: "reversed" }),
    }),
    caption:
      `Effect of ${data.treatments[treatment]} compared with ${data.baseline} per metric and ` +
      `layer, ${split} split, ` +
      `${describeFilters({ withEpoch: false, withSeed: false }) || "all pairs"}, ` +
      `after the last epoch, over all seeds. Red means larger with ${data.treatments[treatment]}, ` +
      "blue smaller. ↑ marks metrics of which larger values are better, ↓ those of which smaller " +
      "values are better. ✱ marks an adjusted p ≤ 0.05. " +
      (size === "cohens_d"
        ? "Colours show Cohen's d: the mean paired difference divided by the standard deviation " +
          "of the differences, limited to ±3. A field is blank if the differences do not vary or " +
          `there are fewer than ${data.min_pairs} pairs.`
        : "Colours show the matched-pairs rank-biserial correlation: ±1 if all non-zero " +
          "differences have the same sign. A field is blank if all differences are 0 or there " +
          `are fewer than ${data.min_pairs} pairs.`) +
      describeFewPairs(rows.map((row) => row[2])),
    ignores: ["seed", "epoch"],
    columns: ["metric", "layer", "n", "effect size", "difference", "low", "high", "p",
      "adjusted p"],
    rows,
  };
}

function ofLayer() {
  const split = chosen("split");
  const [metric, place] = [chosen("metric"), chosen("layer")];
  const title = `${words(metric)}, ${layerInWords(place)}`;
  return { ...trajectory(metric, [split], place, `${title}, ${split} split`),
    title: `How does it develop? ${title}` };
}

/** Draw means over the epochs for each treatment and split, with bands of a standard deviation. */
function trajectory(metric, splits, place, title) {
  const groups = shownGroups();
  const series = data.treatments.flatMap((name, number) => splits.map((split) => ({
    name, number, split, points: data.epochs
      .map((epoch, at) => ({ epoch,
        ...pooled(ofTreatment(groups, number), keyNumberOf(split, metric, place), () => at) }))
      .filter((point) => point.n > 0),
  })));
  const suffix = place === data.model ? "" : `, ${layerInWords(place)}`;
  return {
    traces: series.flatMap(({ name, number, split, points }) => {
      const drawn = lineWithBand(number, splits.length > 1 ? `${name}, ${split}` : name,
        points.map((point) => point.epoch), points, rangeOf(metric));
      if (splits.length > 1) drawn[0].line.dash = DASHES[split];
      return drawn;
    }),
    layout: layout({ xaxis: epochAxis(), yaxis: axis(words(metric) + suffix) }),
    caption:
      title + (data.epochs.length > 1 ? ", from initialization to the end of training" : "") +
      `${comma(describeFilters({ withEpoch: false }))}. Lines are means over ` +
      `${describeCounts(groups)}; ${describeSpread("bands", series)}.` +
      describeMissing(data.treatments.map((_, number) =>
        series.filter((each) => each.number === number).flatMap(({ points }) => points))),
    columns: ["norm", "split", "epoch", ...MEANS],
    rows: series.flatMap(({ name, split, points }) =>
      points.map((point) => [name, split, point.epoch, ...meanOf(point)])),
  };
}

/** Describe the pairs that have the selected layer, if not all pairs have it. */
const describeDepth = () =>
  layersShown > 0
  && data.keys.some((key) => key.site === chosen("site") && key.layers !== layersShown)
    ? ` of networks with ${layersShown} layers` : "";

const comma = (text) => (text ? `, ${text}` : "");

/** Draw mean differences within pairs over epochs or steps, with bands of their intervals. */
function differenceOverTime(metric, split, place, time, pointsOf, timeAxis) {
  const series = comparedTreatments().map(({ name, number }) => ({
    name, number, points: pointsOf(number - 1, keyNumberOf(split, metric, place)).map(asPoint)
      .filter((point) => Number.isFinite(point.difference)),
  }));
  const points = series.flatMap((each) => each.points);
  return {
    title: `When does the difference arise? ${place === data.model ? words(metric) : layerInWords(place)}`,
    traces: series.flatMap(({ name, number, points }) => lineWithBand(
      number, name, points.map((point) => point[time]), points, rangeOf(metric, true))),
    layout: layout({ xaxis: timeAxis(), yaxis: axis(`difference to ${data.baseline}`) }),
    caption:
      `Paired difference in ${words(metric)}${place === data.model ? "" : ` at ${place}`} to ` +
      `${data.baseline}, ${split} split. Lines are means over all pairs` +
      `${place === data.model ? "" : describeDepth()}, n = ` +
      `${distinct(points.map((point) => point.n)).join(", ") || 0}; ` +
      (points.some((point) => Number.isFinite(point.low))
        ? `bands are 95 % confidence intervals of single ${time}s.` : "there are no bands.") +
      describeFewPairs(points.map((point) => point.n)),
    ignores: [...AXES, "seed"],
    columns: ["norm", time, ...DIFFERENCES],
    rows: series.flatMap(({ name, points }) =>
      points.map((point) => [name, point[time], ...differenceOf(point)])),
  };
}

/**
 * Make a function that reads the values of a row of the fields (a treatment) and a key at each epoch or
 * step that has values.
 */
const overTime = (times, time, fields) => (number, key) => times
  .map((value, at) => {
    const cell = (number * times.length + at) * data.keys.length + key;
    return { [time]: value, ...mapped(fields, (field) => (key === undefined ? NaN : field[cell])) };
  })
  .filter((point) => point.n > 0);

const differenceOverEpochs = (metric, split, place) => differenceOverTime(
  metric, split, place, "epoch", overTime(data.epochs, "epoch", curves), epochAxis);

const differenceOverSteps = () => differenceOverTime(
  chosen("metric"), chosen("split"), chosen("layer"), "step",
  overTime(data.steps.steps, "step", stepCurves), stepAxis);

/** Make an axis of training steps. */
const stepAxis = () => axis("training step (logarithmic)", { type: "log" });

function levelsOverSteps() {
  const split = chosen("split");
  const [metric, place] = [chosen("metric"), chosen("layer")];
  const pointsOf = overTime(data.steps.steps, "step", stepMeans);
  const series = data.treatments.map((name, number) => ({
    name, number, points: pointsOf(number, keyNumberOf(split, metric, place)).map(withSpread),
  }));
  return {
    traces: series.flatMap(({ name, number, points }) =>
      lineWithBand(number, name, points.map((point) => point.step), points, rangeOf(metric))),
    layout: layout({ xaxis: stepAxis(), yaxis: axis(`${words(metric)}, ${layerInWords(place)}`) }),
    caption:
      `${words(metric)}, ${layerInWords(place)}, ${split} split, over the training steps. Lines are ` +
      `means over all runs; ${describeSpread("bands", series)}. The network before training is not on the axis. Within ` +
      "epochs, normalization uses the statistics of training samples.",
    ignores: [...AXES, "seed"],
    columns: ["norm", "step", ...MEANS],
    rows: series.flatMap(({ name, points }) =>
      points.map((point) => [name, point.step, ...meanOf(point)])),
  };
}

const SPLITS = distinct(data.keys.map((key) => key.split));
const isKnown = (metric) => data.keys.some((key) => key.metric === metric);

/** Draw loss or accuracy over the epochs: of the probe sets, which have a value at each measured epoch. */
function ofModel(metric) {
  const name = isKnown(`probe_${metric}`) ? `probe_${metric}` : metric;
  const splits = SPLITS.filter((split) => keyNumberOf(split, name, data.model) !== undefined);
  return limitToTraining(
    trajectory(name, splits, data.model, `${words(name)}, ${splits.join(" and ")} split`),
    metric === "loss");
}

/** Return the ticks of a logarithmic axis: 1, 2, 5, 10, ..., or equal steps if these are too few. */
function ticksOf(low, high) {
  const nice = Array.from({ length: 39 }, (_, at) => [1, 2, 5][at % 3] * 10 ** (Math.floor(at / 3) - 9));
  const found = nice.filter((tick) => tick >= low && tick <= high);
  if (found.length > 2) return found;
  const step = nice.find((size) => size >= (high - low) / 6);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, at) => (first + at) * step);
}

/** Limit the axis to the values after training began; those before it would stretch it. */
function limitToTraining(found, isLoss) {
  const trained = found.rows.filter(([, , epoch, , mean]) =>
    epoch > 0 && Number.isFinite(mean) && (!isLoss || mean > 0));
  const ends = trained.flatMap(([, , , , mean, sd]) =>
    isLoss ? [mean] : [mean - (sd || 0), Math.min(1, mean + (sd || 0))]);
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  if (trained.length < 2 || low === high) return found;
  const { yaxis } = found.layout;
  const margin = 0.1 * (high - low);
  if (isLoss) {
    const ticks = ticksOf(low / 1.2, high * 1.2);
    Object.assign(yaxis, { type: "log", tickvals: ticks, ticktext: ticks.map(formatted) });
    yaxis.range = [Math.log10(low / 1.2), Math.log10(high * 1.2)];
    yaxis.title.text += " (logarithmic)";
    // A band that reaches 0 has no end on a logarithmic axis.
    for (const trace of found.traces) trace.y = trace.y.map((value) => Math.max(value, low / 100));
  } else {
    yaxis.range = [low - margin, high + margin];
  }
  found.caption += " Values before training may lie outside the axis.";
  return found;
}

const networkChoice = () => chosen("network").split(":");

function ofNetwork() {
  const [split, metric] = networkChoice();
  return trajectory(metric, [split], data.model, `${words(metric)} of the network, ${split} split`);
}

/**
 * Choose accuracy or loss of the whole split or of its probe set, whichever has values at the selected
 * epoch. Whole splits are evaluated only before training and after the last epoch.
 */
function nameNow(metric) {
  const isBetween = ![last, "0"].includes(String(chosen("epoch")));
  return (isBetween || !isKnown(metric)) && isKnown(`probe_${metric}`) ? `probe_${metric}` : metric;
}

/** Compute a target of a group of runs at the selected epoch. */
function target(name, group) {
  const mean = (split, metric) =>
    pooled([group], keyNumberOf(split, nameNow(metric), data.model)).mean;
  return name === "gap"
    ? mean("train", "accuracy") - mean("test", "accuracy") : mean("test", METRIC_OF[name]);
}

const METRIC_OF = { accuracy: "accuracy", test_loss: "loss" };
const TARGET_NAMES = {
  accuracy: "test accuracy",
  gap: "train − test accuracy",
  test_loss: "test loss",
};
const targetName = (name) =>
  TARGET_NAMES[name] + (nameNow("accuracy") === "accuracy" ? "" : " of the probe set");

function gap() {
  const groups = shownGroups();
  const rows = [];
  const traces = data.treatments.map((name, number) => {
    const { colour, symbol } = looks(number);
    const runs = ofTreatment(groups, number);
    const values = runs.map((group) => target("gap", group));
    runs.forEach((group, at) => rows.push([name, group.cell, group.n, values[at]]));
    return {
      type: "box",
      name: plain(name),
      y: values,
      text: runs.map((group) => plain(group.cell)),
      boxpoints: "all",
      pointpos: 0,
      jitter: 0.3,
      line: { width: 1 },
      marker: { color: colour, symbol, size: 7 },
      fillcolor: translucent(colour, 0.12),
      hovertemplate: "%{text}<br>%{y:.4f}<extra></extra>",
      showlegend: false,
    };
  });
  return {
    traces,
    layout: layout({ xaxis: axis(""), yaxis: axis(targetName("gap")) }),
    caption: `Generalization gap, ${describeFilters()}, ${describeCounts(groups)}. Each point is ` +
      `${describePoint()}; boxes show the quartiles.`,
    columns: ["norm", "run", "n", targetName("gap")],
    rows,
  };
}

const describePoint = () => (counts ? "the mean over seeds at a point of the grid" : "a run");

function against(metric) {
  const [split, place] = [chosen("split"), chosen("layer")];
  const name = chosen("target");
  const key = keyNumberOf(split, metric, place);
  const groups = shownGroups();
  const rows = [];
  const traces = data.treatments.map((treatment, number) => {
    const { colour, symbol } = looks(number);
    const runs = ofTreatment(groups, number);
    const x = runs.map((group) => pooled([group], key).mean);
    const y = runs.map((group) => target(name, group));
    runs.forEach((group, at) => rows.push([treatment, group.cell, group.n, x[at], y[at]]));
    return {
      type: "scatter",
      mode: "markers",
      name: plain(treatment),
      x,
      y,
      text: runs.map((group) => plain(group.cell)),
      marker: { color: colour, symbol, size: 9, opacity: 0.8 },
      hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
    };
  });
  return {
    traces,
    title: `Does the ${words(metric)} go with ${targetName(name)}?`,
    layout: layout({
      xaxis: axis(`${words(metric)}, ${layerInWords(place)}`), yaxis: axis(targetName(name)),
    }),
    caption:
      `${targetName(name)} against ${words(metric)}, ${layerInWords(place)}, ${split} split, ` +
      `${describeFilters()}, ${describeCounts(groups)}. Each point is ${describePoint()}.`,
    columns: ["norm", "run", "n", metric, targetName(name)],
    rows,
  };
}

/** Compute a target's mean and standard deviation over runs. */
function pooledTarget(name, groups) {
  return name === "gap"
    ? summarized(groups, (group) => target("gap", group))
    : pooled(groups, keyNumberOf("test", nameNow(METRIC_OF[name]), data.model));
}

/**
 * Compute mean and standard deviation of a value over the runs of groups. The deviation is NaN if the
 * page contains averages over seeds instead of runs.
 */
function summarized(groups, valueOf) {
  const known = groups.filter((group) => Number.isFinite(valueOf(group)));
  const n = runsIn(known);
  const mean = known.reduce((sum, group) => sum + group.n * valueOf(group), 0) / n;
  const squares = known.reduce((sum, group) => sum + (valueOf(group) - mean) ** 2, 0);
  const sd = n > 1 && !counts ? Math.sqrt(squares / (n - 1)) : NaN;
  return withSpread({ n, undefined: runsIn(groups) - n, mean: n ? mean : NaN, sd });
}

/** Compute the mean difference of a target within pairs of runs, or of seeds that all have a value. */
function pairedTarget(name, treated, untreated) {
  const pairOf = (group) => group.pair ?? JSON.stringify(group.point);
  const partners = new Map(untreated.map((group) => [pairOf(group), group]));
  // Averages over seeds that ended after different epochs are several groups at the same point.
  const isOnly = (group, groups) =>
    groups.filter((other) => pairOf(other) === pairOf(group)).length === 1;
  const isWhole = (group) => pooledTarget(name, [group]).undefined === 0;
  return summarized(
    treated.filter((group) => partners.has(pairOf(group))),
    (group) => {
      const partner = partners.get(pairOf(group));
      return isOnly(group, treated) && isOnly(partner, untreated) &&
        isWhole(group) && isWhole(partner) && group.n === partner.n
        ? target(name, group) - target(name, partner) : NaN;
    },
  );
}

function learningRates() {
  const name = chosen("rate_target");
  const at = data.axes.findIndex((axis) => axis.name === "lr");
  const groups = shownGroups({ free: ["lr"] });
  const rows = [];
  const pointsOf = [];
  const traces = data.treatments.map((treatment, number) => {
    const rates = data.axes[at].values.map(Number);
    const all = rates.map((rate) => ({
      rate,
      ...pooledTarget(name, ofTreatment(groups, number).filter(
        (group) => Number(group.point[at]) === rate)),
    }));
    const points = all.filter((point) => point.n > 0);
    pointsOf.push(all);
    points.forEach((point) => rows.push([treatment, point.rate, ...meanOf(point)]));
    const x = points.map((point) => point.rate);
    const range = name === "gap" ? [-1, 1] : rangeOf(METRIC_OF[name]);
    return withBars(line(number, treatment, x, points), points, range);
  });
  return {
    traces,
    layout: layout({
      xaxis: axis("learning rate", { type: "log" }), yaxis: axis(targetName(name)),
    }),
    caption:
      `${targetName(name)} over the learning rate, ${describeFilters({ free: ["lr"] })}. Points ` +
      `are means over ${describeCounts(groups)}; ` +
      `${describeSpread("bars", pointsOf.map((points) => ({ points })))}.` + describeMissing(pointsOf),
    columns: ["norm", "learning rate", ...MEANS],
    rows,
  };
}

function depthWidth() {
  const [depth, width] = ["depth", "width"].map((name) =>
    data.axes.findIndex((axis) => axis.name === name));
  const [what, name] = [chosen("over_grid"), chosen("over_grid_target")];
  const groups = shownGroups({ free: ["depth", "width"] });
  const rows = [];
  const isDifference = what.startsWith("-");
  const number = Math.abs(Number(what));
  const points = data.axes[depth].values.map((down) =>
    data.axes[width].values.map((right) => {
      const atPoint = groups.filter((group) =>
        group.point[depth] === down && group.point[width] === right);
      const ofNorm = ofTreatment(atPoint, number);
      const point = isDifference
        ? pairedTarget(name, ofNorm, ofTreatment(atPoint, 0)) : pooledTarget(name, ofNorm);
      rows.push([down, right, point.n, point.undefined, point.mean]);
      return point;
    }));
  const z = points.map((row) => row.map((point) => point.mean));
  const largest = Math.max(...z.flat().filter(Number.isFinite).map(Math.abs), 1e-12);
  const title = isDifference
    ? `${data.treatments[number]} minus ${data.baseline}` : data.treatments[number];
  return {
    traces: [{
      type: "heatmap",
      x: data.axes[width].values.map(plain),
      y: data.axes[depth].values.map(plain),
      z,
      text: points.map((row) => row.map(describeSize)),
      texttemplate: "%{z:.3f}<br>%{text}",
      hovertemplate: "depth %{y}, width %{x}: %{z:.4f}<br>%{text}<extra></extra>",
      colorscale: isDifference ? differenceColours() : "Viridis",
      ...(isDifference ? { zmin: -largest, zmax: largest } : {}),
      colorbar: { thickness: 12 },
      hoverongaps: false,
    }],
    layout: layout({
      xaxis: axis("width", { type: "category" }), yaxis: axis("depth", { type: "category" }),
    }),
    caption: `${targetName(name)} of ${title} over depth and width, ` +
      `${describeFilters({ free: ["depth", "width"] })}. Values are ` +
      (isDifference ? "mean differences within pairs." : "means over runs."),
    columns: ["depth", "width", "n", "without a value", targetName(name)],
    rows,
  };
}

/** Select the embeddings of the selected runs by the selected method. */
const fittingPictures = () => data.embeddings.pictures.filter((picture) =>
  picture.method === chosen("embedding_method") && isShown(picture));

/**
 * List the layers of some embeddings, activations last: names, and functions that recognize the
 * embeddings of a layer. Networks with different numbers of layers have relative depths instead, each
 * with the embedding of the nearest layer.
 */
function layersOfEmbeddings(pictures) {
  const sites = distinct(pictures.map((picture) => picture.site)).sort().reverse();
  return new Map(sites.filter((site) => site !== "act").concat(sites.filter((site) => site === "act"))
    .flatMap((site) => {
      const ofSite = pictures.filter((picture) => picture.site === site);
      const counts = distinct(ofSite.map((picture) => picture.layers));
      if (counts.length > 1) {
        return data.depths.map((depth) => [
          `depth ${100 * depth} %${site === "act" ? "" : ` ${site}`}`,
          (picture) => picture.site === site
            && picture.position === 1 + Math.round(depth * (picture.layers - 1)),
        ]);
      }
      return Array.from({ length: counts[0] }, (_, at) => [
        distinct(ofSite.filter((picture) => picture.position === at + 1)
          .map((picture) => picture.layer)).join(" / "),
        (picture) => picture.site === site && picture.position === at + 1,
      ]);
    }));
}

/** Select the embeddings of the first pair in which the most treatments have one. */
function picturesShown() {
  const pictures = fittingPictures();
  const isOfLayer = layersOfEmbeddings(pictures).get(chosen("embedding_layer"));
  const fitting = isOfLayer ? pictures.filter(isOfLayer) : [];
  const pairs = distinct(fitting.map((picture) => picture.pair))
    .map((pair) => fitting.filter((picture) => picture.pair === pair));
  const most = Math.max(...pairs.map((pictures) => pictures.length));
  const found = pairs.find((pictures) => pictures.length === most) ?? [];
  return found.sort((a, b) => a.treatment - b.treatment);
}

/** Group the samples of an embedding by class. */
function samplesOf(picture) {
  const found = new Map(Object.keys(data.embeddings.classes).map((label) => [Number(label), []]));
  for (let at = picture.first; at < picture.first + picture.count; at += 1) {
    found.get(embeddingLabels[at]).push(at);
  }
  return found;
}

function embeddings() {
  const pictures = picturesShown();
  const colours = property("--series").split(" ");
  const columns = Math.min(pictures.length, innerWidth < 720 ? 1 : 3) || 1;
  const rowCount = Math.ceil(pictures.length / columns) || 1;
  const measuredOn = distinct(pictures.map((picture) => `${picture.split} split, epoch ${picture.epoch}`));
  const centre = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const rows = [];
  const axes = {};
  const annotations = [];
  const inLegend = new Set();
  const traces = pictures.flatMap((picture, at) => {
    const name = data.treatments[picture.treatment];
    const suffix = at ? String(at + 1) : "";
    const [column, row] = [at % columns, Math.floor(at / columns)];
    const bare = { showticklabels: false, zeroline: false, gridcolor: property("--line") };
    axes[`xaxis${suffix}`] = {
      ...bare, anchor: `y${suffix}`, domain: [column / columns, (column + 0.94) / columns],
    };
    axes[`yaxis${suffix}`] = {
      ...bare, anchor: `x${suffix}`, scaleanchor: `x${suffix}`,
      domain: [1 - (row + 0.94) / rowCount, 1 - (row + 0.06) / rowCount],
    };
    annotations.push({
      text: plain([
        name,
        ...(measuredOn.length > 1 ? [`${picture.split} split, epoch ${picture.epoch}`] : []),
        ...(picture.share ? [`${(100 * picture.share).toFixed(0)} % of the variance`] : []),
        ...(picture.reason ? [`no embedding: ${picture.reason}`] : []),
      ].join(", ")),
      xref: `x${suffix} domain`, yref: `y${suffix} domain`, x: 0.5, y: 1,
      xanchor: "center", yanchor: "bottom", showarrow: false,
    });
    return [...samplesOf(picture)].map(([label, inside], number) => {
      const of = data.embeddings.classes[label];
      const [x, y] = [embeddingX, embeddingY].map((values) => inside.map((sample) => values[sample]));
      if (inside.length) rows.push([name, picture.cell, of, inside.length, centre(x), centre(y)]);
      const isFirst = inside.length > 0 && !inLegend.has(label);
      if (isFirst) inLegend.add(label);
      return {
        type: "scatter",
        mode: "markers",
        name: plain(of),
        legendgroup: String(label),
        showlegend: isFirst && Object.keys(data.embeddings.classes).length <= 20,
        x,
        y,
        xaxis: `x${suffix}`,
        yaxis: `y${suffix}`,
        marker: {
          color: colours[number % colours.length],
          symbol: MARKERS[(number + Math.floor(number / colours.length)) % MARKERS.length],
          size: 5,
          opacity: 0.75,
        },
        text: plain(of),
        hovertemplate: "%{text}<extra></extra>",
      };
    });
  });
  const [first] = pictures;
  return {
    traces,
    layout: layout({
      height: 60 + 380 * rowCount,
      margin: { ...TIGHT, l: 8, b: 8 },
      legend: { orientation: "h", y: 0, yanchor: "top", x: 0 },
      annotations,
      ...axes,
    }),
    caption: first
      ? `${first.method.toUpperCase()} of ` +
        `${distinct(pictures.map((picture) => picture.layer)).join(" / ")}, ` +
        `${measuredOn.join(" and ")}, seed ${first.seed}. Runs: ` +
        `${pictures.map((picture) => picture.cell).join(", ")}. Each embedding has at most ` +
        `${Math.max(...pictures.map((picture) => picture.count))} samples.`
      : "None of the selected runs has an embedding.",
    columns: ["norm", "run", "class", "n", "mean of the first axis", "mean of the second axis"],
    rows,
  };
}

function similarity() {
  const [pair, name] = chosen("similarity").split(":");
  const matrix = data.similarities[Number(pair)];
  const { rows, columns, values, direction } = matrix.matrices[name];
  return {
    traces: [{
      type: "heatmap",
      x: columns.map(plain),
      y: rows.map(plain),
      z: values,
      colorscale: "Viridis",
      reversescale: direction === "lower", // similar layers are bright
      colorbar: { thickness: 12 },
      hovertemplate: "%{y}, %{x}: %{z:.3f}<extra></extra>",
    }],
    layout: layout({
      height: 420,
      xaxis: axis(matrix.names[1], { type: "category" }),
      yaxis: axis(matrix.names[0], { type: "category", autorange: "reversed" }),
    }),
    caption: `${name} between the layers of ${matrix.names[0]} and ${matrix.names[1]}, ` +
      `${matrix.samples} samples of the ${matrix.split} split.`,
    columns: ["layer", ...columns],
    rows: rows.map((row, at) => [row, ...values[at]]),
  };
}

const FIGURES = {
  "sparsity-levels": () => levels(chosen("sparsity")),
  "sparsity-difference": () => difference(chosen("sparsity")),
  "clustering-levels": () => levels(chosen("clustering")),
  "clustering-difference": () => difference(chosen("clustering")),
  "depth-nc1": () => levels("nc1", { type: "log" }),
  "depth-linear_probe": () => levels("linear_probe"),
  "depth-initial": beforeTraining,
  "effects": allEffects,
  "epochs-levels": ofLayer,
  "epochs-difference": () =>
    differenceOverEpochs(chosen("metric"), chosen("split"), chosen("layer")),
  "steps-levels": levelsOverSteps,
  "steps-difference": differenceOverSteps,
  "accuracy": () => ofModel("accuracy"),
  "loss": () => ofModel("loss"),
  "gap": gap,
  "network-levels": ofNetwork,
  "network-difference": () => differenceOverEpochs(...networkChoice().reverse(), data.model),
  "against-sparsity": () => against(chosen("sparsity")),
  "against-clustering": () => against(chosen("clustering")),
  "learning-rates": learningRates,
  "depth-width": depthWidth,
  "embeddings": embeddings,
  "similarity": similarity,
};

// ---- Drawing -----------------------------------------------------------------------------------

const figures = [...document.querySelectorAll("figure[data-figure]")];
const waiting = new Set(); // figures that are out of view and not up to date

function draw(figure) {
  waiting.delete(figure);
  figure.ariaBusy = "false";
  const found = FIGURES[figure.dataset.figure]();
  const plot = figure.querySelector(".plot");
  const values = distinct(found.traces.flatMap((trace) => trace.y ?? []).filter(Number.isFinite));
  const hasValues = found.traces.some((trace) =>
    (trace.z?.flat() ?? trace.y ?? []).some((value) => Number.isFinite(value)));
  if (values.length === 1 && values[0]) {  // Plotly would draw -0.02 on an axis from -1 to 1
    found.layout.yaxis.range ??= [Math.min(0, 2 * values[0]), Math.max(0, 2 * values[0])];
  }
  if (!hasValues) {
    window.Plotly?.purge(plot);
    plot.classList.remove("js-plotly-plot"); // printing lays these out again
    plot.textContent = "There are no values to draw.";
  } else if (window.Plotly) {
    if (!plot.querySelector(".plot-container")) plot.textContent = ""; // a message
    Plotly.react(plot, found.traces, found.layout, { responsive: true, displayModeBar: false });
  } else {
    plot.textContent = "This browser is too old to draw the figure. The table below contains its numbers.";
  }
  figure.querySelector("figcaption").textContent = found.caption;
  if (found.title) figure.querySelector("h3").textContent = found.title;
  const ignored = controls.filter((control) =>
    (found.ignores ?? []).includes(control.dataset.choice) && isActive(control));
  const note = figure.querySelector(".unfiltered");
  note.hidden = !ignored.length;
  note.textContent = `Not filtered by ${ignored.map((control) =>
    control.labels[0].firstChild.textContent.trim()).join(", ")}.`;
  plot.setAttribute("aria-label", `${found.caption} The table below contains its numbers.`);
  figure.found = found;
  if (figure.querySelector("details").open) tabulate(figure);
}

function tabulate(figure) {
  const place = figure.querySelector(".numbers");
  const table = document.createElement("table");
  const caption = table.createCaption();
  caption.textContent = figure.found.caption;
  caption.className = "unseen";
  const head = table.createTHead().insertRow();
  for (const name of figure.found.columns) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = name;
    head.append(cell);
  }
  const body = table.createTBody();
  for (const row of figure.found.rows) {
    const line = body.insertRow();
    for (const value of row) {
      const cell = line.insertCell();
      cell.textContent = formatted(value);
      if (typeof value === "number") cell.dataset.value = value;
    }
  }
  place.replaceChildren(table);
}

const sight = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      entry.target.isSeen = entry.isIntersecting;
      if (entry.isIntersecting && waiting.has(entry.target)) draw(entry.target);
    }
  },
  { rootMargin: "400px" },
);

/** Redraw the figures: the visible ones now, the others when they become visible. */
function update() {
  if (data.metrics.length) offer();
  if (data.embeddings.pictures.length) offerEmbeddings();
  for (const control of controls) {
    control.classList.toggle("active", control.closest("#filters") && isActive(control));
  }
  for (const figure of figures) {
    waiting.add(figure);
    figure.ariaBusy = "true";
    if (figure.isSeen) draw(figure);
  }
  const shown = runsIn(shownGroups());
  const all = runsIn(data.groups);
  document.getElementById("shown").textContent =
    `${shown} of ${counted(all, "run")} shown${comma(describeFilters())}`;
}

/** Replace the options of a control, and keep the selected one if it is among them. */
function refill(name, values, first, inWords = layerInWords) {
  const control = controlOf(name);
  if (!control) return; // not on the page of a single epoch
  const before = [...control.options].map((option) => option.value);
  if (before.join("\n") === values.join("\n")) return;
  const kept = control.value;
  control.replaceChildren(
    ...values.map((value) => new Option(inWords(value), value, value === first)));
  control.value = values.includes(kept) ? kept : first;
}

const describeMetric = (metric) =>
  words(metric) === metric ? metric : `${words(metric)} (${metric})`;

/** Offer the layers and metrics of the selected site and point of the axes. */
function offer() {
  layersShown = countLayers();
  const ofSite = data.keys.filter(
    (key) => key.site === chosen("site") && key.layers === layersShown);
  const layers = [...ofSite].sort((a, b) => a.place_index - b.place_index);
  const places = distinct(layers.map((key) => key.place));
  const metrics = distinct(ofSite.map((key) => key.metric));
  refill("layer", places, places.at(-1));
  refill("metric", metrics, metrics[0], describeMetric);
}

/** Offer the layers of the selected embeddings. */
function offerEmbeddings() {
  const layers = [...layersOfEmbeddings(fittingPictures()).keys()];
  refill("embedding_layer", layers, layers.at(-1));
}

for (const control of controls) control.addEventListener("change", update);
for (const figure of figures) {
  figure.querySelector("details").addEventListener("toggle", () => {
    if (figure.querySelector("details").open) {
      if (waiting.has(figure)) draw(figure);
      else tabulate(figure);
    }
  });
}
document.getElementById("reset-filters").addEventListener("click", () => {
  document.getElementById("filters").reset();
  colour();
});

const theme = document.getElementById("theme");
const darkness = matchMedia("(prefers-color-scheme: dark)");

function colour() {
  const system = darkness.matches ? "dark" : "light";
  document.documentElement.dataset.theme = theme.value === "system" ? system : theme.value;
  update();
}

theme.addEventListener("change", colour);
darkness.addEventListener("change", colour);

// A sheet of paper shows all text, and figures of its width.
const PAPER = 660;
const closed = [...document.querySelectorAll("details.verdict:not([open])")];
addEventListener("beforeprint", () => {
  for (const details of closed) details.open = true;
  for (const figure of figures) {
    draw(figure);
    const plot = figure.querySelector(".js-plotly-plot");
    if (plot) Plotly.relayout(plot, { width: PAPER });
  }
});
addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
  update();
});

colour();
plotly.finally(() => figures.forEach((figure) => {
  waiting.add(figure); // also if its numbers were opened, and it was drawn without Plotly, before
  sight.observe(figure);
}));
