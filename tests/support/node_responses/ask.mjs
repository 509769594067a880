// Asks a gateway's Responses API as npm's clients do, and prints what came of it as JSON: node ask.mjs URL MODEL.
import OpenAI from "openai";
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, model] = process.argv.slice(2);

async function askWithOpenAI() {
  const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
  const plain = await client.responses.create({ model, input: "Hi" });
  const stream = client.responses.stream({ model, input: "Hi", reasoning: { effort: "high" } });
  const kinds = [];
  for await (const event of stream) kinds.push(event.type);
  const items = [];
  for await (const item of client.responses.inputItems.list(plain.id)) items.push(item.type);
  await client.responses.delete(plain.id);
  const error = await client.responses.retrieve(plain.id).catch((caught) => caught);
  return {
    text: plain.output_text,
    streamed: (await stream.finalResponse()).output_text,
    thoughts: kinds.filter((kind) => kind === "response.reasoning_text.delta").length,
    items,
    error: { name: error.constructor.name, status: error.status },
  };
}

async function askWithAI(options) {
  const openai = createOpenAI({ baseURL, apiKey: "none" });
  const execute = async ({ city }) => ({ city, sky: "rain" });
  const weather = tool({ description: "The weather", inputSchema: z.object({ city: z.string() }), execute });
  const thinking = { reasoningEffort: "high", reasoningSummary: "auto", forceReasoning: true };
  const steps = { model: openai(model), prompt: "Weather?", tools: { weather }, stopWhen: stepCountIs(3) };
  const called = await generateText({ ...steps, providerOptions: { openai: options } });
  const stream = streamText({ ...steps, providerOptions: { openai: { ...thinking, ...options } } });
  const errors = [];
  for await (const part of stream.fullStream) if (part.type === "error") errors.push(String(part.error));
  const broken = streamText({ model: openai(model), prompt: "break", maxRetries: 0, onError: () => {} });
  const kinds = [];
  for await (const part of broken.fullStream) kinds.push(part.type);
  const schema = z.object({ km: z.number(), town: z.string() });
  return {
    answer: called.text,
    numSteps: called.steps.length,
    warnings: called.warnings,
    streamed: await stream.text,
    thought: await stream.reasoningText,
    errors,
    isBreakNoticed: kinds.includes("error"),
    object: (await generateObject({ model: openai(model), prompt: "A ride", schema })).object,
  };
}

console.log(
  JSON.stringify({
    openai: await askWithOpenAI(),
    stored: await askWithAI({}),
    unstored: await askWithAI({ store: false, include: ["reasoning.encrypted_content"] }),
  }),
);
