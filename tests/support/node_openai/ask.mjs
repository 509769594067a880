// Asks a gateway as npm's clients do, and prints what came of it as JSON: node ask.mjs URL MODEL.
import OpenAI from "openai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, model] = process.argv.slice(2);
const messages = [{ role: "user", content: "How warm is it in Oslo?" }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const described = { name: "get_weather", description: "How warm it is", parameters };
const Place = z.object({ city: z.string(), size: z.number() });

async function askWithOpenAI() {
  const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
  const plain = await client.chat.completions.create({ model, messages });
  const tools = [{ type: "function", function: described }];
  const streamed = await client.chat.completions.stream({ model, messages, tools }).finalChatCompletion();
  const runner = client.chat.completions.runTools({
    model,
    messages,
    tools: [{ type: "function", function: { ...described, parse: JSON.parse, function: ({ city }) => `${city}: 4 degrees` } }],
  });
  const completion = await client.completions.create({ model, prompt: ["a b", "c"] });
  const error = await client.chat.completions.create({ model: "nope", messages }).catch((caught) => caught);
  return {
    text: plain.choices[0].message.content,
    call: streamed.choices[0].message.tool_calls[0].function,
    content: streamed.choices[0].message.content,
    answer: await runner.finalContent(),
    completions: completion.choices.map((choice) => choice.text),
    error: { name: error.constructor.name, status: error.status, code: error.code, hasId: Boolean(error.requestID) },
  };
}

async function askWithAI(chat, text) {
  const inputSchema = z.object({ city: z.string() });
  const execute = async ({ city }) => `${city}: 4 degrees`;
  const tools = { get_weather: tool({ description: "How warm it is", inputSchema, execute }) };
  const steps = { prompt: "How warm is it?", tools, stopWhen: stepCountIs(3) };
  const plain = await generateText({ model: chat, prompt: "Hello" });
  const called = await generateText({ model: chat, ...steps });
  const stream = streamText({ model: chat, ...steps });
  const kinds = [];
  for await (const part of stream.fullStream) kinds.push(part.type);
  const object = await generateObject({ model: chat, schema: Place, prompt: "A place" });
  const objects = streamObject({ model: chat, schema: Place, prompt: "A place" });
  for await (const part of objects.partialObjectStream) void part;
  const completion = streamText({ model: text, prompt: "a b" });
  return {
    text: plain.text,
    warnings: plain.warnings,
    tokens: plain.usage.totalTokens,
    answer: called.text,
    numSteps: called.steps.length,
    streamed: await stream.text,
    numErrors: kinds.filter((kind) => kind === "error").length,
    numTexts: kinds.filter((kind) => kind === "text-start").length,
    object: object.object,
    streamedObject: await objects.object,
    completion: await completion.text,
    reason: await completion.finishReason,
  };
}

const openai = createOpenAI({ baseURL, apiKey: "none" });
const compatible = createOpenAICompatible({ name: "paceline", baseURL, includeUsage: true, supportsStructuredOutputs: true });
console.log(
  JSON.stringify({
    openai: await askWithOpenAI(),
    ai: await askWithAI(openai.chat(model), openai.completion(model)),
    compatible: await askWithAI(compatible(model), compatible.completionModel(model)),
  }),
);
