-- Health of a TrainingRun or EvalRun for Argo CD. An AwaitingConfirmation run is Suspended: it waits for a person.
local health = {status = "Progressing", message = "The operator has not looked at this version of the run yet"}
if obj.status == nil or obj.status.conditions == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return health
end

local conditions = {}
for _, condition in ipairs(obj.status.conditions) do
  conditions[condition.type] = condition
end
local of_state = {
  PlanReady = "Healthy",
  Succeeded = "Healthy",
  Adopted = "Healthy",
  Cancelled = "Healthy",
  AwaitingConfirmation = "Suspended",
  Suspended = "Suspended",
  Failed = "Degraded",
}
health.status = of_state[obj.status.state] or "Progressing"
if conditions.Stalled ~= nil and conditions.Stalled.status == "True" then
  health.status = "Degraded"
end
if conditions.Progressing ~= nil then
  health.message = conditions.Progressing.message
end
return health
