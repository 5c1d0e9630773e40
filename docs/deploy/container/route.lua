-- Orthanc sends each stable MR series to the receiver, but none that came back from there. What fails it sends again a
-- minute later, unless it was restarted meanwhile: then POST /jobs/ID/resubmit, or send the series again.
local failed = {}

function OnStableSeries(series, tags, metadata)
   if tags['Modality'] == 'MR' and tags['Manufacturer'] ~= 'ddib-fed' then
      RestApiPost('/modalities/ddib/store', DumpJson({Resources = {series}, Asynchronous = true}, true))
   end
end

function OnJobFailure(job)
   failed[job] = true
end

function OnHeartBeat() -- every LuaHeartBeatPeriod seconds
   for job in pairs(failed) do
      failed[job] = nil
      RestApiPost('/jobs/' .. job .. '/resubmit', '{}')
   end
end
