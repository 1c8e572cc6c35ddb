/** All ranks of a job as one picture: a canvas, since 1,000 of them change every second. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { lookOf } from "../states.ts";
import { count, figure } from "../text.ts";
import type { Worker } from "../wire.ts";

interface Layout {
  columns: number;
  wide: number;
  high: number;
  /** What fits into a cell. */
  detail: "step" | "rank" | "mark";
}

const GAP = 3;

/** The smaller, the more there are. */
export function layout(ranks: number, width: number): Layout {
  const [wide, high, detail] =
    ranks <= 64 ? [86, 40, "step" as const] : ranks <= 256 ? [38, 26, "rank" as const] : [17, 17, "mark" as const];
  return { columns: Math.max(1, Math.floor((width + GAP) / (wide + GAP))), wide, high, detail };
}

export const stateOf = (worker: Worker): string => (worker.hang ? "hangs" : worker.state);

/** How it looks, as a value: a cell is drawn again only when that is another. */
function signature(worker: Worker, furthest: number, detail: Layout["detail"], picked: boolean, here: boolean): string {
  const step = detail === "step" ? worker.step : Math.round(((worker.step ?? 0) / Math.max(1, furthest)) * 10);
  return `${stateOf(worker)} ${step} ${worker.straggler === null ? "" : "s"} ${picked} ${here}`;
}

class Drawing {
  private drawn: string[] = [];
  private frame = "";
  private colours: Record<string, string> = {};

  constructor(private readonly canvas: HTMLCanvasElement) {}

  draw(workers: Worker[], width: number, picked: Set<number>, here: number): void {
    const grid = layout(workers.length, width);
    const high = Math.ceil(workers.length / grid.columns) * (grid.high + GAP) - GAP;
    const context = this.canvas.getContext("2d");
    if (!context) return;
    this.fit(context, width, high);
    const furthest = workers.reduce((most, worker) => Math.max(most, worker.step ?? 0), 0);
    workers.forEach((worker, index) => {
      const mine = signature(worker, furthest, grid.detail, picked.has(worker.rank), here === index);
      if (mine === this.drawn[index]) return;
      this.drawn[index] = mine;
      const x = (index % grid.columns) * (grid.wide + GAP);
      const y = Math.floor(index / grid.columns) * (grid.high + GAP);
      this.cell(context, worker, furthest, grid, x, y, picked.has(worker.rank), here === index);
    });
  }

  /** Begin anew when the size or the theme is another. */
  private fit(context: CanvasRenderingContext2D, width: number, high: number): void {
    const scale = devicePixelRatio || 1;
    const style = getComputedStyle(this.canvas);
    const frame = `${width} ${high} ${scale} ${style.getPropertyValue("--ink")}`;
    if (frame === this.frame) return;
    this.frame = frame;
    this.drawn = [];
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(high * scale);
    this.canvas.style.height = `${high}px`;
    context.scale(scale, scale);
    for (const name of ["ok", "busy", "warn", "bad", "idle", "ink", "muted", "cell", "accent", "surface"]) {
      this.colours[name] = style.getPropertyValue(`--${name}`);
    }
    this.colours["font"] = style.fontFamily;
  }

  private cell(
    context: CanvasRenderingContext2D,
    worker: Worker,
    furthest: number,
    grid: Layout,
    x: number,
    y: number,
    picked: boolean,
    here: boolean,
  ): void {
    const { wide, high, detail } = grid;
    const colour = (name: string): string => this.colours[name] ?? "";
    const look = lookOf(stateOf(worker));
    context.clearRect(x - 1, y - 1, wide + 2, high + 2);
    context.fillStyle = colour("cell");
    context.fillRect(x, y, wide, high);
    context.fillStyle = context.strokeStyle = colour(look.tone);
    context.fillRect(x, y + high - 3, (wide * (worker.step ?? 0)) / Math.max(1, furthest), 3);
    const size = detail === "mark" ? 13 : 14;
    context.save();
    context.translate(detail === "mark" ? x + 2 : x + 4, detail === "mark" ? y : y + 3);
    context.scale(size / 16, size / 16);
    context.lineWidth = 1.8;
    const path = new Path2D(look.path);
    if (look.filled) context.fill(path);
    else context.stroke(path);
    context.restore();
    if (detail !== "mark") {
      context.font = `11px ${colour("font")}`;
      context.fillStyle = colour("ink");
      context.fillText(String(worker.rank), x + 20, y + 14);
    }
    if (detail === "step") {
      context.fillStyle = colour("muted");
      context.fillText(worker.step === null ? worker.section || "–" : `step ${count(worker.step)}`, x + 6, y + 30);
    }
    if (worker.straggler !== null) {
      context.fillStyle = colour("warn");
      context.fillRect(x + wide - 5, y + 2, 3, 3);
    }
    if (picked || here) {
      context.strokeStyle = colour(here ? "ink" : "accent");
      context.lineWidth = 2;
      context.strokeRect(x + 1, y + 1, wide - 2, high - 2);
    }
  }
}

export function describe(worker: Worker, furthest: number): string {
  const behind = worker.step === null || worker.step >= furthest ? "" : ` (${count(furthest - worker.step)} behind the furthest)`;
  const metrics = Object.entries(worker.metrics).map(([name, value]) => `${name} ${figure(value)}`);
  return [
    `rank ${worker.rank}: ${worker.state}`,
    worker.hang,
    worker.step === null ? "no step yet" : `step ${count(worker.step)}${behind}`,
    worker.section ? `in ${worker.section}` : "",
    worker.node ? `node ${worker.node}` : "on no node",
    worker.pid ? `pid ${worker.pid}` : "",
    `attempt ${worker.attempt}`,
    ...metrics,
    worker.straggler === null ? "" : `straggler, score ${worker.straggler.toFixed(1)}`,
    worker.lastExit ? `last exit: ${worker.lastExit.message}${worker.lastExit.line ? `, ${worker.lastExit.line}` : ""}` : "",
  ]
    .filter(Boolean)
    .join(" · ");
}

export function RankGrid(props: { workers: Worker[]; picked: Set<number>; onPick: (rank: number) => void }): JSX.Element {
  const { workers, picked, onPick } = props;
  const box = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const drawing = useRef<Drawing | null>(null);
  const [width, setWidth] = useState(0);
  const [here, setHere] = useState(-1);
  const [, redraw] = useState(0);
  useEffect(() => {
    const seen = new ResizeObserver((entries) => setWidth(Math.floor(entries[0]?.contentRect.width ?? 0)));
    if (box.current) seen.observe(box.current);
    const themed = (): void => redraw((turn) => turn + 1);
    addEventListener("themechange", themed);
    return () => {
      seen.disconnect();
      removeEventListener("themechange", themed);
    };
  }, []);
  useEffect(() => {
    if (!canvas.current || width === 0) return;
    drawing.current ??= new Drawing(canvas.current);
    drawing.current.draw(workers, width, picked, here);
  });
  const at = (event: MouseEvent): number => {
    const grid = layout(workers.length, width);
    const column = Math.floor(event.offsetX / (grid.wide + GAP));
    const index = Math.floor(event.offsetY / (grid.high + GAP)) * grid.columns + column;
    return column < grid.columns && index < workers.length ? index : -1;
  };
  const key = (event: KeyboardEvent): void => {
    const { columns } = layout(workers.length, width);
    const moves: Record<string, number> = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
    const ends: Record<string, number> = { Home: 0, End: workers.length - 1 };
    const move = moves[event.key];
    const worker = workers[here];
    if (move !== undefined) setHere(Math.max(0, Math.min(workers.length - 1, here < 0 ? 0 : here + move)));
    else if (ends[event.key] !== undefined) setHere(ends[event.key] as number);
    else if ((event.key === "Enter" || event.key === " ") && worker) onPick(worker.rank);
    else return;
    event.preventDefault();
  };
  const furthest = workers.reduce((most, worker) => Math.max(most, worker.step ?? 0), 0);
  const shown = workers[here];
  return (
    <div class="ranks">
      <div
        ref={box}
        class="grid"
        role="application"
        aria-roledescription="grid of ranks"
        aria-label={`${count(workers.length)} ranks; arrow keys move, Enter selects a rank for the logs`}
        aria-describedby="rank-here"
        tabIndex={0}
        onKeyDown={key}
      >
        <canvas
          ref={canvas}
          aria-hidden="true"
          onMouseMove={(event) => setHere(at(event))}
          onMouseLeave={() => setHere(-1)}
          onClick={(event) => {
            const worker = workers[at(event)];
            if (worker) onPick(worker.rank);
          }}
        />
      </div>
      <p id="rank-here" class="here" aria-live="polite">
        {shown ? describe(shown, furthest) : "Point at a rank, or move with the arrow keys, to see it; select it to see its logs alone."}
      </p>
    </div>
  );
}
