/** How a state looks: a shape of its own and a tone, so that nothing is told by colour alone. */

export type Tone = "ok" | "busy" | "warn" | "bad" | "idle";

export interface Look {
  tone: Tone;
  /** A path in a box of 16 by 16, for SVG and canvas alike. */
  path: string;
  filled: boolean;
}

const DISC = "M8 3.5a4.5 4.5 0 1 0 0 9a4.5 4.5 0 1 0 0-9z";
const TRIANGLE = "M5 3.5l7 4.5l-7 4.5z";
const TURN = "M12.3 6.2A4.6 4.6 0 1 0 12.6 9.2M12.9 2.8v3.6h-3.6";
const SQUARE = "M4.5 4.5h7v7h-7z";
const CHECK = "M3.5 8.5l3 3l6-7";
const CROSS = "M4.2 4.2l7.6 7.6M11.8 4.2l-7.6 7.6";
const WARNING = "M8 2.8L14 13H2zM8 6.5v3M8 11v.6";
const BARS = "M5.5 4v8M10.5 4v8";

const look = (tone: Tone, path: string, filled = false): Look => ({ tone, path, filled });

const LOOKS: Record<string, Look> = {
  pending: look("idle", DISC),
  waiting: look("idle", DISC),
  starting: look("busy", TRIANGLE),
  running: look("ok", DISC, true),
  restarting: look("warn", TURN),
  stopping: look("warn", SQUARE),
  stopped: look("idle", SQUARE, true),
  succeeded: look("ok", CHECK),
  failed: look("bad", CROSS),
  lost: look("bad", WARNING),
  ready: look("ok", DISC, true),
  suspect: look("warn", WARNING),
  hangs: look("bad", BARS),
  cordoned: look("warn", BARS),
  draining: look("warn", TURN),
  drained: look("idle", SQUARE, true),
};

export const lookOf = (state: string): Look => LOOKS[state] ?? look("idle", DISC);

export const JOB_STATES = ["running", "starting", "restarting", "pending", "stopping", "failed", "stopped", "succeeded"];
