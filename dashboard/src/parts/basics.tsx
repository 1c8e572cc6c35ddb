/** Small things that every page is made of. */

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { lookOf } from "../states.ts";

export function StateMark({ state, label }: { state: string; label?: string }): JSX.Element {
  const { tone, path, filled } = lookOf(state);
  return (
    <span class={`state ${tone}`}>
      <svg viewBox="0 0 16 16" aria-hidden="true" class={filled ? "filled" : ""}>
        <path d={path} />
      </svg>
      {label ?? state}
    </span>
  );
}

export function Panel(props: { title: string; aside?: ComponentChildren; children: ComponentChildren; class?: string }): JSX.Element {
  return (
    <section class={`panel ${props.class ?? ""}`} aria-label={props.title}>
      <header>
        <h2>{props.title}</h2>
        {props.aside}
      </header>
      {props.children}
    </section>
  );
}

export function Figure({ name, value, note }: { name: string; value: ComponentChildren; note?: ComponentChildren }): JSX.Element {
  return (
    <div class="figure">
      <dt>{name}</dt>
      <dd>
        <span class="value">{value}</span>
        {note ? <span class="note">{note}</span> : null}
      </dd>
    </div>
  );
}

/** A share of something, with its figure beside it. */
export function Meter({ share, label }: { share: number; label: string }): JSX.Element {
  return (
    <svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label={label}>
      <rect class="track" width="100" height="6" />
      <rect class="fill" width={Math.max(0, Math.min(1, share)) * 100} height="6" />
    </svg>
  );
}

export function Failure({ text }: { text: string }): JSX.Element | null {
  return text ? (
    <p class="failure" role="alert">
      {text}
    </p>
  ) : null;
}

/** The head of a column that sorts. */
export function SortHead(props: { column: string; by: string; onSort: (column: string) => void; children: string; class?: string }): JSX.Element {
  const down = props.by === `-${props.column}`;
  const on = down || props.by === props.column;
  return (
    <th scope="col" class={props.class} aria-sort={on ? (down ? "descending" : "ascending") : "none"}>
      <button type="button" onClick={() => props.onSort(props.column)}>
        {props.children}
        <span aria-hidden="true" class="arrow">
          {on ? (down ? "▾" : "▴") : ""}
        </span>
      </button>
    </th>
  );
}

export function Pager({ page, pages, onPage }: { page: number; pages: number; onPage: (page: number) => void }): JSX.Element | null {
  if (pages < 2) return null;
  return (
    <nav class="pager" aria-label="Pages">
      <button type="button" disabled={page <= 1} onClick={() => onPage(page - 1)}>
        Previous
      </button>
      <span>
        page {page} of {pages}
      </span>
      <button type="button" disabled={page >= pages} onClick={() => onPage(page + 1)}>
        Next
      </button>
    </nav>
  );
}

export interface Question {
  title: string;
  text: string;
  /** What the button says that does it. */
  yes: string;
  danger: boolean;
  /** A choice besides, off at first. */
  option?: string;
  act: (option: boolean) => Promise<void>;
}

/** Asks before something is done. Escape and the other button leave all as it is. */
export function Confirm({ question, onClose }: { question: Question; onClose: () => void }): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null);
  const option = useRef<HTMLInputElement>(null);
  useEffect(() => {
    const before = document.activeElement;
    dialog.current?.showModal();
    return () => (before instanceof HTMLElement ? before.focus() : undefined);
  }, []);
  const act = (event: Event): void => {
    event.preventDefault();
    const chosen = option.current?.checked ?? false;
    onClose();
    void question.act(chosen);
  };
  return (
    <dialog ref={dialog} aria-labelledby="question" aria-describedby="question-text" onClose={onClose}>
      <form onSubmit={act}>
        <h2 id="question">{question.title}</h2>
        <p id="question-text">{question.text}</p>
        {question.option ? (
          <label class="option">
            <input type="checkbox" ref={option} /> {question.option}
          </label>
        ) : null}
        <div class="buttons">
          <button type="button" autofocus onClick={() => dialog.current?.close()}>
            Leave it
          </button>
          <button type="submit" class={question.danger ? "danger" : "primary"}>
            {question.yes}
          </button>
        </div>
      </form>
    </dialog>
  );
}
