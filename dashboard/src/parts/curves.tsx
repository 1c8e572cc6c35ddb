/** Curves of what the program reports, and of how fast it is. */

import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { clock, count, figure } from "../text.ts";
import { bySteps, byTime, thinned } from "../thin.ts";
import type { Series } from "../wire.ts";

const HIGH = 150;
export const MOST_POINTS = 600;

interface CurveProps {
  title: string;
  series: Series;
  over: "step" | "time";
}

function options(canvas: HTMLElement, over: "step" | "time", width: number): uPlot.Options {
  const style = getComputedStyle(canvas);
  const colour = (name: string): string => style.getPropertyValue(`--${name}`);
  const axis: uPlot.Axis = {
    stroke: colour("muted"),
    font: `11px ${style.fontFamily}`,
    grid: { stroke: colour("line"), width: 1 },
    ticks: { show: false },
  };
  return {
    width,
    height: HIGH,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
    scales: { x: { time: over === "time" } },
    axes: [
      {
        ...axis,
        size: 26,
        space: 70,
        values: (_plot, ticks) => ticks.map((tick) => (over === "time" ? clock(tick * 1000).slice(-8) : count(tick))),
      },
      { ...axis, size: 56, space: 32, values: (_plot, ticks) => ticks.map((tick) => figure(tick)) },
    ],
    series: [{}, { stroke: colour("accent"), width: 1.5, points: { show: false }, spanGaps: true }],
  };
}

export function Curve({ title, series, over }: CurveProps): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const readout = useRef<HTMLSpanElement>(null);
  const points = thinned(over === "step" ? bySteps(series.points) : byTime(series.points), MOST_POINTS);
  const data: uPlot.AlignedData = [
    points.map((point) => (over === "step" ? point.step : point.at / 1000)),
    points.map((point) => (Number.isFinite(point.value) ? point.value : null)),
  ];
  const latest = useRef(data);
  latest.current = data;
  const last = points.at(-1);
  const newest = figure(last?.value ?? null);
  useEffect(() => {
    const place = box.current;
    if (!place) return undefined;
    const make = (): void => {
      plot.current?.destroy();
      const wanted = options(place, over, Math.max(120, place.clientWidth));
      const hover = (made: uPlot): void => {
        const index = made.cursor.idx;
        const [xs, ys] = latest.current;
        const x = index === null || index === undefined ? undefined : xs[index];
        const y = index === null || index === undefined ? undefined : ys?.[index];
        if (!readout.current) return;
        const where = x === undefined ? "" : over === "step" ? `step ${count(x)}` : clock(x * 1000);
        readout.current.textContent = x === undefined ? "" : `${where}: ${figure(y ?? null)}`;
      };
      plot.current = new uPlot({ ...wanted, hooks: { setCursor: [hover] } }, latest.current, place);
    };
    make();
    const resized = new ResizeObserver(() => {
      const width = Math.max(120, place.clientWidth);
      if (plot.current && plot.current.width !== width) plot.current.setSize({ width, height: HIGH });
    });
    resized.observe(place);
    addEventListener("themechange", make);
    return () => {
      removeEventListener("themechange", make);
      resized.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [over]);
  const drawn = `${points.length} ${last?.at} ${last?.step} ${last?.value}`;
  useEffect(() => plot.current?.setData(latest.current), [drawn]);
  const first = points[0];
  const said = first && last ? `from ${figure(first.value)} at step ${count(first.step)} to ${newest} at step ${count(last.step)}` : "no points yet";
  return (
    <figure class="curve">
      <figcaption>
        <b>{title}</b> <span class="value">{newest}</span> <span class="note" ref={readout} />
      </figcaption>
      <div ref={box} role="img" aria-label={`${title}: ${said}`} />
    </figure>
  );
}
