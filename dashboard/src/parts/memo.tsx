/** Draws a part again only when it is given something else: a page changes many times a second, most of its parts do not. */

import { Component, type ComponentType, type FunctionComponent, type JSX } from "preact";

export function memo<P extends object>(Part: FunctionComponent<P>): ComponentType<P> {
  return class Kept extends Component<P> {
    override shouldComponentUpdate(next: P): boolean {
      const before = this.props as Record<string, unknown>;
      const after = next as Record<string, unknown>;
      return Object.keys({ ...before, ...after }).some((key) => before[key] !== after[key]);
    }

    override render(): JSX.Element {
      return <Part {...(this.props as P)} />;
    }
  };
}
