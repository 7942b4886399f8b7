// SPDX-License-Identifier: Apache-2.0
/**
 * A `fetch` whose answers are verified (docs/howto/consumer.md). The verification is that of the command `attest`, of the
 * Python package `quotary`; nothing is judged here. What is done here: a nonce for each request, the exact bytes of request
 * and answer, the attestation fetched by the id that the host names, and no end of an answer before its verdict.
 *
 * An answer that will not do is an error of its body, not of `fetch`: API clients repeat what `fetch` throws.
 */

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const DOOR = "/quotary/v1/attestations/";
const LIMIT = 64 * 1024 * 1024;
const ATTESTATION_LIMIT = 1024 * 1024;
const EVENT_LIMIT = 4 * 1024 * 1024;
const OUTPUT_ID = /^out_[0-9a-f]{48}$/;
const EMPTY = new Set([204, 205, 304]);
const BLANK_LINE = /\n\r?\n/g;
// What clients may take for the end, however it stands there: each reads spaces, lines and fields a little differently.
const NAMES = ["response.completed", "response.incomplete", "response.failed", "message_stop"];
const LAST_EVENT = new RegExp(["\\[DONE\\]", ...NAMES.map(spelled)].join("|"));
const REMEMBERED = 128;

/** An answer without a verdict. */
export class AttestationError extends Error {
  constructor(message, report) {
    super(message);
    this.name = this.constructor.name;
    this.report = report;
  }
}

/** The answer has no attestation, says that it has none, or its host knows of none. */
export class AttestationMissing extends AttestationError {}

/** The attestation is malformed, false, or lacks something that the policy requires. */
export class AttestationRejected extends AttestationError {}

/** Nothing is false, but a required check could not be done. */
export class AttestationNotChecked extends AttestationError {}

const verdicts = new WeakMap();

/** Resolves to the verdict on a response once its body was read to its end; rejects with an AttestationError. */
export async function verdict(response) {
  const found = verdicts.get(response);
  if (found === undefined) throw new TypeError("no response that came through quotary");
  return found;
}

/** Returns a `fetch` that verifies answers against the policy in a file. */
export function verifying({
  policy,
  policyKeys = [],
  policyState,
  unattested = [],
  command = ["attest"],
  door = DOOR,
  limit = LIMIT,
  fetch = globalThis.fetch,
}) {
  if (typeof policy !== "string") throw new TypeError("policy must be the path of a policy");
  const settings = { policy, policyKeys, policyState, unattested, command, door, limit, fetch };
  return (input, init) => verified(settings, input, init);
}

async function verified(settings, input, init = {}) {
  const asked = new Request(input, { ...init, ...(init.body && { duplex: "half" }) });
  const request = new Uint8Array(await asked.arrayBuffer());
  const nonce = randomBytes(32).toString("hex");
  const headers = new Headers(asked.headers);
  headers.set("Quotary-Nonce", nonce);
  headers.set("Quotary-Deliver", "deferred"); // by id: the body stays what the engine sent
  headers.set("Accept-Encoding", "identity");
  const answer = await settings.fetch(asked.url, {
    ...init,
    method: asked.method,
    headers,
    body: request.length ? request : undefined,
    signal: asked.signal,
    redirect: "error",
  });
  const exchange = { settings, url: asked.url, headers, request, nonce, answer, pieces: [], size: 0 };
  const { promise, resolve, reject } = Promise.withResolvers?.() ?? deferred();
  promise.catch(() => {}); // who does not ask for a verdict has seen the body's error
  if (answer.status >= 400 || allowed(exchange)) {
    reject(new AttestationMissing("the answer needs no attestation and has none that was looked at"));
    verdicts.set(answer, promise);
    return answer;
  }
  const response = new Response(EMPTY.has(answer.status) ? null : checked(exchange, resolve, reject), answer);
  if (EMPTY.has(answer.status)) reject(new AttestationNotChecked("the answer has no body that could be attested"));
  Object.defineProperty(response, "url", { value: answer.url });
  verdicts.set(response, promise);
  return response;
}

function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}

/** Tells whether an answer may lack an attestation, and does: one that it has is checked all the same. */
function allowed({ settings, url, answer }) {
  if (answer.headers.has("Quotary-Output") && !answer.headers.has("Quotary-Attested")) return false;
  const path = new URL(url).pathname;
  return settings.unattested.some((rule) =>
    rule.endsWith("*") ? path.startsWith(rule.slice(0, -1)) : path === rule,
  );
}

/** The body of an answer, whose end waits for the verdict. */
function checked(exchange, resolve, reject) {
  const { answer, settings } = exchange;
  const reader = answer.body?.getReader();
  const release = releaser(answer.headers.get("Content-Type") ?? "");
  const fail = (controller, error) => {
    reject(error);
    controller.error(error);
    return reader?.cancel(error).catch(() => {});
  };
  const next = async (controller) => {
    for (;;) {
      const { done, value } = (await reader?.read()) ?? { done: true };
      if (done) {
        const found = await judge(exchange);
        resolve(found);
        const rest = release(null);
        if (rest.length) controller.enqueue(rest);
        return controller.close();
      }
      exchange.size += value.length;
      if (exchange.size > settings.limit)
        throw new AttestationNotChecked(`the answer is longer than ${settings.limit} bytes`);
      exchange.pieces.push(value);
      const out = release(value);
      if (out.length) return controller.enqueue(out);
    }
  };
  return new ReadableStream({
    start: (controller) => {
      const problem = refusal(answer);
      if (problem) return fail(controller, problem);
    },
    pull: (controller) => next(controller).catch((error) => fail(controller, error)),
    cancel: (reason) => {
      reject(new AttestationNotChecked("the answer was not read to its end, where its verdict stands"));
      return reader?.cancel(reason);
    },
  });
}

/** What can be told from the head of an answer already. */
function refusal({ headers }) {
  if (headers.has("Quotary-Attested") || !OUTPUT_ID.test(headers.get("Quotary-Output") ?? ""))
    return new AttestationMissing("the answer has no attestation");
  const coding = headers.get("Content-Encoding") ?? "identity";
  if (coding !== "identity")
    return new AttestationNotChecked(`the answer came with the content coding ${coding}`);
}

/** Returns a pattern of all ways in which JSON can write a name. */
function spelled(name) {
  const hex = (letter) => letter.charCodeAt(0).toString(16).replace(/[a-f]/g, (c) => `[${c}${c.toUpperCase()}]`);
  return [...name].map((letter) => `(?:${letter.replace(".", "\\.")}|\\\\u00${hex(letter)})`).join("");
}

/** Returns what says of each piece what may be handed on now; of null, what was held until the end. */
function releaser(kind) {
  if (kind.startsWith("text/event-stream")) return eventReleaser();
  const held = [];
  const whole = /^[^;]*[/+]json\s*(;|$)/.test(kind) || !kind;
  let before = "";
  return (piece) => {
    if (piece === null) return Buffer.concat(held);
    if (whole || held.length) return held.push(piece), Buffer.alloc(0);
    // A client that expects events reads them whatever the media type says.
    const text = before + Buffer.from(piece).toString("latin1");
    const final = LAST_EVENT.exec(text);
    const cut = final ? Math.max(0, final.index - before.length) : piece.length;
    if (final) held.push(piece.subarray(cut));
    before = text.slice(-REMEMBERED);
    return piece.subarray(0, cut);
  };
}

function eventReleaser() {
  let held = []; // begins where an event begins
  let size = 0;
  let before = "";
  const tail = []; // the last event and what follows it
  return (piece) => {
    if (piece === null) return Buffer.concat(tail.length ? tail : held);
    if (tail.length) return tail.push(piece), Buffer.alloc(0);
    held.push(piece);
    size += piece.length;
    if (size > EVENT_LIMIT) throw new AttestationNotChecked(`an event is longer than ${EVENT_LIMIT} bytes`);
    const latest = before + Buffer.from(piece).toString("latin1");
    before = latest.slice(-REMEMBERED);
    // an event that comes byte by byte is not looked through for each byte
    if (latest.search(BLANK_LINE) < 0 && latest.search(LAST_EVENT) < 0) return Buffer.alloc(0);
    const open = Buffer.concat(held);
    const text = open.toString("latin1");
    const final = LAST_EVENT.exec(text);
    const ends = [...text.slice(0, final?.index).matchAll(BLANK_LINE)].map((match) => match.index + match[0].length);
    const cut = ends.at(-1) ?? 0;
    const rest = open.subarray(cut);
    if (final) tail.push(rest);
    held = [rest];
    size = rest.length;
    return open.subarray(0, cut);
  };
}

/** Fetches the attestation and runs `attest verify`. */
async function judge(exchange) {
  const attestation = await fetchAttestation(exchange);
  const folder = await mkdtemp(join(tmpdir(), "quotary-")); // of mode 0700
  try {
    const files = { attestation: join(folder, "attestation"), request: join(folder, "request") };
    await writeFile(files.attestation, attestation);
    await writeFile(files.request, exchange.request);
    const { policy, policyKeys, policyState, command } = exchange.settings;
    const given = ["--policy", policy, "--attestation", files.attestation, "--request", files.request];
    given.push(...policyKeys.flatMap((key) => ["--policy-key", key]));
    if (policyState !== undefined) given.push("--policy-state", policyState);
    const words = [...command.slice(1), "verify", "-", ...given, "--nonce", exchange.nonce, "--json"];
    const { code, out, problem } = await run(command[0], words, Buffer.concat(exchange.pieces));
    return outcome(code, out, problem);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function fetchAttestation({ settings, url, headers, answer }) {
  const id = answer.headers.get("Quotary-Output");
  const place = new URL(settings.door + id, url);
  const sent = new Headers({ "Accept-Encoding": "identity" });
  if (place.origin === new URL(url).origin && headers.has("Authorization"))
    sent.set("Authorization", headers.get("Authorization"));
  const parts = [];
  let size = 0;
  try {
    const got = await settings.fetch(place, { headers: sent, redirect: "error" });
    if (got.status === 404) throw new AttestationMissing(`the host has no attestation of ${id}`);
    if (got.status !== 200) throw new AttestationNotChecked(`the host answered ${got.status} for ${id}`);
    for await (const part of got.body) {
      size += part.length;
      if (size > ATTESTATION_LIMIT) throw new AttestationNotChecked(`the attestation of ${id} is too long`);
      parts.push(part);
    }
  } catch (error) {
    if (error instanceof AttestationError) throw error;
    throw new AttestationNotChecked(`the attestation of ${id} was not fetched: ${error.message}`);
  }
  return Buffer.concat(parts);
}

function run(program, words, input) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, words, { stdio: ["pipe", "pipe", "pipe"] });
    const out = [];
    const problem = [];
    child.stdout.on("data", (part) => out.push(part));
    child.stderr.on("data", (part) => problem.push(part));
    child.on("error", (error) => reject(new AttestationNotChecked(`${program}: ${error.code}`)));
    child.on("close", (code) => resolve({ code, out: String(Buffer.concat(out)), problem: String(Buffer.concat(problem)) }));
    child.stdin.on("error", () => {}); // it may end before it has read all
    child.stdin.end(input);
  });
}

/** Returns the verdict, or throws what the command found. Only exit code 0 with a verdict is a verdict. */
function outcome(code, out, problem) {
  let report;
  try {
    const printed = JSON.parse(out);
    report = printed.results?.[0].verdict;
    problem = printed.error ?? problem;
  } catch {} // not JSON: whatever it was, no verdict
  if (!report) throw new AttestationNotChecked(`attest verify ended with ${code}: ${problem.trim()}`);
  if (code === 0 && report.outcome === "verified") {
    // The command takes the text of an answer as well: here it would be another body than the one that is attested.
    const matched = report.claims?.find(({ name }) => name === "matched")?.value ?? "nothing";
    if (matched !== "body" && !matched.startsWith("body,"))
      throw new AttestationRejected(`output: the answer is no body that is attested, but ${matched}`, report);
    return report;
  }
  const Kind = code === 1 ? AttestationRejected : AttestationNotChecked;
  throw new Kind(`${report.failing}: ${report.reason}`, report);
}
