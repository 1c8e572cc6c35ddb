/** Curves of a bounded number of points. */

import type { Point } from "./wire.ts";

/**
 * By step, each once: of a step that was done again after a restart the last report counts, as it does for training.
 */
export function bySteps(points: readonly Point[]): Point[] {
  const last = new Map<number, Point>();
  for (const point of points) {
    const there = last.get(point.step);
    if (!there || there.at <= point.at) last.set(point.step, point);
  }
  return [...last.values()].sort((a, b) => a.step - b.step);
}

/** By time, each moment once. */
export function byTime(points: readonly Point[]): Point[] {
  return [...new Map(points.map((point) => [point.at, point])).values()].sort((a, b) => a.at - b.at);
}

/**
 * At most `most` points (4 at least): the first, the last, and of each of equal parts between them the lowest and the
 * highest, so that a spike stays in sight.
 */
export function thinned(points: readonly Point[], most: number): Point[] {
  if (points.length <= Math.max(4, most)) return [...points];
  const parts = Math.max(1, Math.floor((Math.max(4, most) - 2) / 2));
  const inner = points.slice(1, -1);
  const kept: Point[] = [points[0] as Point];
  for (let part = 0; part < parts; part++) {
    const some = inner.slice(
      Math.floor((part * inner.length) / parts),
      Math.floor(((part + 1) * inner.length) / parts),
    );
    if (some.length === 0) continue;
    let low = 0;
    let high = 0;
    some.forEach((point, index) => {
      if (point.value < (some[low] as Point).value) low = index;
      if (point.value > (some[high] as Point).value) high = index;
    });
    const [first, second] = low < high ? [low, high] : [high, low];
    kept.push(some[first] as Point);
    if (second !== first) kept.push(some[second] as Point);
  }
  kept.push(points[points.length - 1] as Point);
  return kept;
}
