// SPDX-License-Identifier: Apache-2.0

/** One thing that the evidence says, and who says it. */
export interface Claim {
  name: string;
  value: string | number | boolean | null;
  source: "hardware" | "measured" | "endorsed" | "host";
}

/** What `attest verify --json` says of one output (schema quotary-verdict/v1). */
export interface Report {
  schema: string;
  outcome: "verified" | "rejected" | "could-not-check";
  failing: string | null;
  reason: string;
  at: number;
  policy: string;
  checks: { number: number; code: string; title: string; state: string; detail: string }[];
  claims: Claim[];
  tolerances: string[];
  not_understood: string[];
  notices: string[];
}

export interface Options {
  /** The path of a policy. */
  policy: string;
  /** Files with the public keys (PEM) of those who may sign policies; with any, the policy must be signed. */
  policyKeys?: string[];
  /** Where to keep the highest version seen of each signed policy; an older one is then refused. */
  policyState?: string;
  /** Paths whose answers need no attestation; a final * stands for any rest. */
  unattested?: string[];
  /** The command that verifies, and its first words. Default: ["attest"]. */
  command?: string[];
  /** Where attestations are fetched by output id. Default: /quotary/v1/attestations/ of the same host. */
  door?: string;
  /** The longest answer, in bytes. Default: 64 MiB. */
  limit?: number;
  /** What sends the requests. Default: the global fetch. */
  fetch?: typeof globalThis.fetch;
}

/** Returns a `fetch` that verifies answers; a body that will not do ends in an AttestationError. */
export function verifying(options: Options): typeof globalThis.fetch;

/** Resolves to the verdict on a response once its body was read to its end; rejects with an AttestationError. */
export function verdict(response: Response): Promise<Report>;

export class AttestationError extends Error {
  report?: Report;
}
export class AttestationMissing extends AttestationError {}
export class AttestationRejected extends AttestationError {}
export class AttestationNotChecked extends AttestationError {}
